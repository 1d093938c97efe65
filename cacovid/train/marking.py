"""Marks of an answer, in [0, 1], by the type of its problem (ALGORITHMS 1.5)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any

from cacovid.errors import InvalidInputError, MissingDependencyError
from cacovid.train.words import RougeWords, rouge_words, space_unspaced

# A reply that the limit on new tokens cut off has no closing tag.
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_MARKUP = re.compile(r"<think>.*?(?:</think>|\Z)|</?(?:answer|think)>", re.DOTALL | re.IGNORECASE)
_LETTER = re.compile(r"[A-Za-z]")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
# Figure dash, en dash, minus sign, and the small and full-width hyphens.
_MINUS = str.maketrans(dict.fromkeys("\u2012\u2013\u2212\ufe63\uff0d", "-"))


def extract_answer(text: str) -> str:
    """What stands in `<answer>…</answer>`, else the whole text; without space around it.

    The whole text is without tags, and without what stands in `<think>…</think>`.

    >>> extract_answer("I think so. <answer> B </answer>")
    'B'
    >>> extract_answer("<think>A cat?</think> C")
    'C'
    """
    found = _ANSWER.search(text)
    return (found.group(1) if found else _MARKUP.sub("", text)).strip()


def mark(reply: str, solution: str, problem_type: str) -> float:
    """Marks a reply.

    Args:
        reply: What the model said.
        solution: The right answer; `<answer>` tags are taken off.
        problem_type: `"multiple choice"`, `"numerical"`, `"OCR"`, `"free-form"`, `"regression"`,
            or `"exact"` (ours: the same words, whatever the case; ROUGE-2 of a single word is 0).

    Returns:
        1 for a right reply, 0 for a wrong one, and values between for OCR, free-form and
        regression.

    Raises:
        InvalidInputError: for another problem type.
        MissingDependencyError: if the package for OCR or free-form marks is not installed.

    Multiple choice goes by the first letter (of the answer, else of the reply without its tags), as
    published: `"Answer: B"` says A. OCR and free-form count words, and characters in scripts
    without spaces between words (`cacovid.train.words`).

    >>> mark("<answer>b</answer>", "B", "multiple choice")
    1.0
    """
    if problem_type not in _MARKS:
        raise InvalidInputError(
            f"problem_type is {problem_type!r}; expected one of {', '.join(PROBLEM_TYPES)}"
        )
    return _MARKS[problem_type](extract_answer(reply), extract_answer(solution), reply)


def _choice(answer: str, solution: str, reply: str) -> float:
    wanted = _first_letter(solution)
    said = _first_letter(answer) or _first_letter(_MARKUP.sub("", reply))
    return float(wanted is not None and said == wanted)


def _first_letter(text: str) -> str | None:
    found = _LETTER.search(text)
    return found.group(0).upper() if found else None


def _numerical(answer: str, solution: str, reply: str) -> float:
    said, wanted = _number(answer), _number(solution)
    if said is None or wanted is None or _has_point(answer) != _has_point(solution):
        return 0.0
    return float(round(said, 2) == round(wanted, 2))


def _has_point(text: str) -> bool:
    # A comma counts as a decimal point.
    return "." in text or "," in text


def _number(text: str) -> float | None:
    """The finite number that a text is, else the first one in it."""
    text = text.translate(_MINUS)
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        found = _NUMBER.search(text)
        number = float(found.group(0).replace(",", "")) if found else math.nan
    return number if math.isfinite(number) else None


def _ocr(answer: str, solution: str, reply: str) -> float:
    if not solution.split():
        return float(not answer.split())
    try:
        import jiwer
    except ImportError as error:
        raise MissingDependencyError(
            "marks of OCR problems need jiwer; install cacovid[train]"
        ) from error
    wanted, said = (" ".join(space_unspaced(text).split()) for text in (solution, answer))
    return max(0.0, 1.0 - float(jiwer.wer(wanted, said)))


def _free_form(answer: str, solution: str, reply: str) -> float:
    scores = _rouge().score(solution, answer)
    return sum(score.fmeasure for score in scores.values()) / len(scores)


@cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingDependencyError(
            "marks of free-form problems need rouge-score; install cacovid[train]"
        ) from error
    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=RougeWords())


def _regression(answer: str, solution: str, reply: str) -> float:
    said, wanted = _number(answer), _number(solution)
    if said is None or wanted is None:
        return 0.0
    if wanted == 0.0:
        return float(said == 0.0)
    return max(0.0, 1.0 - abs(said - wanted) / abs(wanted))


def _exact(answer: str, solution: str, reply: str) -> float:
    def plain(text: str) -> str:
        return " ".join(text.split()).rstrip(".").casefold()

    return float(plain(answer) == plain(solution))


_MARKS: dict[str, Callable[[str, str, str], float]] = {
    "multiple choice": _choice,
    "numerical": _numerical,
    "OCR": _ocr,
    "free-form": _free_form,
    "regression": _regression,
    "exact": _exact,
}

#: The problem types that can be marked.
PROBLEM_TYPES: tuple[str, ...] = tuple(_MARKS)

_PACKAGES = {"OCR": "jiwer", "free-form": "rouge_score"}


def check_packages(problem_types: Iterable[str]) -> None:
    """Refuses problem types that cannot be marked here, before a run begins.

    Args:
        problem_types: Of the data.

    Raises:
        MissingDependencyError: naming the package.
    """
    for kind in sorted(set(problem_types)):
        package = _PACKAGES.get(kind)
        if package is not None and find_spec(package) is None:
            raise MissingDependencyError(
                f"marks of {kind} problems need {package}; install cacovid[train]"
            )


def check_solution(solution: str, problem_type: str) -> None:
    """Refuses a solution that no reply could be marked by.

    Args:
        solution: Without tags.
        problem_type: One of `PROBLEM_TYPES`.

    Raises:
        InvalidInputError: for a number that is none, or a text without words.
    """
    if problem_type in ("numerical", "regression") and _number(solution) is None:
        raise InvalidInputError(f"the solution {solution!r} holds no number")
    if problem_type == "free-form" and not rouge_words(solution):
        raise InvalidInputError(f"the solution {solution!r} holds no word")
