"""Options of a multiple choice and the letter of its solution, from what files say."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from reprlib import Repr
from string import ascii_uppercase
from typing import Any

from cacovid.errors import InvalidInputError

_OPENS, _CLOSES = r"[(\[]?\s*", r"\s*[)\].:,、]+"
_LABELLED = re.compile(rf"{_OPENS}([A-Za-z])(?:{_CLOSES}\s*(.*))?", re.DOTALL)
_BARE = re.compile(rf"{_OPENS}([A-Za-z])(?:{_CLOSES})?")


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def short(value: Any) -> str:
    """A value as messages show it: at most some hundred characters."""
    return _SHORT.repr(value)


def option_letters(count: int) -> tuple[str, ...]:
    """The letters of so many options.

    Args:
        count: 2 to 26.

    Raises:
        InvalidInputError: for another count.

    >>> option_letters(3)
    ('A', 'B', 'C')
    """
    if not 2 <= count <= len(ascii_uppercase):
        raise InvalidInputError(
            f"a multiple choice has {count} option{'s' * (count != 1)}; expected 2 to "
            f"{len(ascii_uppercase)}"
        )
    return tuple(ascii_uppercase[:count])


def letter_ids(tokenizer: Any, letters: Sequence[str]) -> list[int]:
    """The token of each letter, as a model writes it at the beginning of its reply.

    Args:
        tokenizer: The model's.
        letters: Of the options.

    Raises:
        InvalidInputError: if the tokenizer cannot tell the letters apart.
    """
    ids = [tokenizer(letter, add_special_tokens=False).input_ids[0] for letter in letters]
    if len(set(ids)) < len(ids):
        raise InvalidInputError(
            f"the tokenizer cannot tell the letters {letters[0]} to {letters[-1]} apart; leave out "
            f"questions of {len(letters)} options, or take another model"
        )
    return ids


def read_text(value: Any, name: str) -> str:
    """Text, or a number written down.

    Args:
        value: What the file says.
        name: For messages.

    Raises:
        InvalidInputError: for anything else, and for text that no tokenizer takes.
    """
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise InvalidInputError(f"{name} is {short(value)}; expected text or a number")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{name} holds half of a character ({error.object[error.start]!r}, a lone surrogate)"
        ) from error
    return text


def read_options(value: Any) -> tuple[str, ...]:
    """Options as texts.

    Args:
        value: What the file says: a list of texts or numbers, or texts by their letters; None and
            empty values are no options.

    Raises:
        InvalidInputError: for anything else.

    >>> read_options({"B": "blue", "A": "red"})
    ('A. red', 'B. blue')
    """
    if value is None or (isinstance(value, (str, Sequence, Mapping)) and not value):
        return ()
    letters: Sequence[str] = ()
    if isinstance(value, Mapping):
        by_letter = {str(key).strip().upper(): text for key, text in value.items()}
        letters = sorted(by_letter)
        if "".join(letters) == ascii_uppercase[: len(value)]:
            value = [by_letter[letter] for letter in letters]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InvalidInputError(f"options are {short(value)}; expected a list of texts")
    texts = [read_text(option, f"option {n}") for n, option in enumerate(value, 1)]
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise InvalidInputError(f"option {number} is empty")
    if letters:
        return tuple(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    return tuple(texts)


def letter_options(options: Sequence[str]) -> tuple[str, ...]:
    """Options that begin with their letters: as they are, or with letters put before them.

    Args:
        options: All with letters (in any order, in any usual form) or all without.

    Raises:
        InvalidInputError: if only some have letters, or there are not 2 to 26.

    >>> letter_options(["red", "blue"])
    ('A. red', 'B. blue')
    >>> letter_options(["(A) red", "(B) blue"])
    ('(A) red', '(B) blue')
    """
    letters = option_letters(len(options))
    found = [_label(option) for option in options]
    if sorted(label for label, _ in found) == list(letters):
        return tuple(options)
    # A text such as "E. coli" has a letter, but not its own.
    if any(label == letter for (label, _), letter in zip(found, letters, strict=True)):
        raise InvalidInputError(
            f"only some options have their letters: {short(list(options))}; give each its own, or "
            f"none any"
        )
    return tuple(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))


def solution_letter(solution: str, options: Sequence[str]) -> str:
    """The letter that a solution names: `B`, `(b)`, `B. blue`, or an option's text.

    Args:
        solution: Without tags.
        options: With letters, as `letter_options` gives them.

    Raises:
        InvalidInputError: if it names none, or one beyond the options.

    >>> solution_letter("(b)", ["A. red", "B. blue"]), solution_letter("red", ["A. red", "B. blue"])
    ('B', 'A')
    """
    letters = option_letters(len(options))
    text = unicodedata.normalize("NFKC", solution).strip()
    bare = _BARE.fullmatch(text)
    if bare is None:
        same = [
            label
            for option, (label, rest) in zip(options, map(_label, options), strict=True)
            if _plain(text) in (_plain(option), _plain(rest))
        ]
        if len(same) == 1:
            return same[0]
    found = bare or _LABELLED.fullmatch(text)
    if found is None:
        raise InvalidInputError(
            f"the solution {short(solution)} is neither a letter from {letters[0]} to "
            f"{letters[-1]} nor the text of one option"
        )
    letter = found.group(1).upper()
    if letter not in letters:
        raise InvalidInputError(
            f"the solution {short(solution)} is beyond the {len(letters)} options"
        )
    return letter


def _label(option: str) -> tuple[str, str]:
    """The letter that a text begins with (empty: none), and the text behind it."""
    text = unicodedata.normalize("NFKC", option).strip()
    found = _LABELLED.fullmatch(text)
    return (found.group(1).upper(), found.group(2) or "") if found else ("", text)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split()).rstrip(".").casefold()
