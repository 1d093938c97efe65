"""Keep the video tokens that contribute to a correct answer to this question."""
