"""How a problem is put to the model: its text, its options, and what kind of answer is wanted."""

from __future__ import annotations

from dataclasses import replace

from cacovid.train.data import Samples, TrainingSample

_CLOSING = {
    "multiple choice": "Reply with nothing but the letter of the right option.",
    "numerical": "Reply with nothing but the number, for example 42 or 3.14.",
    "OCR": "Reply with nothing but the text as it is written.",
    "free-form": "Reply with a short text.",
    "regression": "Reply with nothing but the number, for example 42 or 3.14.",
    "exact": "Reply with nothing but the answer.",
}


def word_problem(sample: TrainingSample) -> str:
    """The user's turn, without the video.

    A sample that is `worded` is put as it is; see `put_plainly`.

    >>> from cacovid.train.data import TrainingSample
    >>> sample = TrainingSample(
    ...     id="1", problem="What is red?", solution="A", problem_type="multiple choice",
    ...     options=("A. a ball", "B. a hat"),
    ... )
    >>> print(word_problem(sample))
    What is red?
    A. a ball
    B. a hat
    Reply with nothing but the letter of the right option.
    """
    if sample.worded:
        return sample.problem
    return f"{_plain(sample)}\n{_CLOSING[sample.problem_type]}"


def put_plainly(samples: Samples) -> Samples:
    """The samples worded without a closing sentence, as `cacovid.VideoQA.ask` puts a question.

    For models whose directory says `"closing": false` (`cacovid.models.defaults`): small models
    know no words but those that they were trained with.
    """
    kept = tuple(s if s.worded else replace(s, problem=_plain(s), worded=True) for s in samples)
    return replace(samples, kept=kept)


def _plain(sample: TrainingSample) -> str:
    return "\n".join((sample.problem.strip(), *sample.options))
