"""Comparing ways of choosing tokens: accuracy with intervals, on the same questions."""
