"""Marks of an answer, in [0, 1], by the type of its problem (ALGORITHMS 1.5)."""

from __future__ import annotations

import re
from collections.abc import Callable

from cacovid.errors import InvalidInputError, MissingDependencyError

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_LETTER = re.compile(r"[A-Za-z]")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def extract_answer(text: str) -> str:
    """What stands in `<answer>…</answer>`, else the whole text; without space around it.

    >>> extract_answer("I think so. <answer> B </answer>")
    'B'
    """
    found = _ANSWER.search(text)
    return (found.group(1) if found else text).strip()


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
    said = _first_letter(answer) or _first_letter(reply)
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
    try:
        return float(text.replace(",", ""))
    except ValueError:
        found = _NUMBER.search(text)
        return float(found.group(0).replace(",", "")) if found else None


def _ocr(answer: str, solution: str, reply: str) -> float:
    if not solution.split():
        return float(not answer.split())
    try:
        import jiwer
    except ImportError as error:
        raise MissingDependencyError(
            "marks of OCR problems need jiwer; install cacovid[train]"
        ) from error
    return max(0.0, 1.0 - float(jiwer.wer(" ".join(solution.split()), " ".join(answer.split()))))


def _free_form(answer: str, solution: str, reply: str) -> float:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingDependencyError(
            "marks of free-form problems need rouge-score; install cacovid[train]"
        ) from error
    kinds = ["rouge1", "rouge2", "rougeL"]
    scores = RougeScorer(kinds, use_stemmer=True).score(solution, answer)
    return sum(scores[kind].fmeasure for kind in kinds) / len(kinds)


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
