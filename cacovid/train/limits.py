"""Limits of settings, told with the setting's name and what was given."""

from __future__ import annotations

from typing import Any

from cacovid.errors import InvalidInputError


def check_at_least(settings: Any, least: float, *names: str, section: str = "") -> None:
    """Refuses numbers below `least` and NaN; None passes.

    Args:
        settings: Holds the numbers.
        least: The least.
        names: Of the settings.
        section: What stands before a name in messages, such as `"cpo."`.

    Raises:
        InvalidInputError: naming the setting.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= least:
            raise InvalidInputError(f"{section}{name} is {value}; expected at least {least}")


def check_positive(settings: Any, *names: str, section: str = "") -> None:
    """Refuses 0, negative numbers and NaN; None passes.

    Args:
        settings: Holds the numbers.
        names: Of the settings.
        section: What stands before a name in messages.

    Raises:
        InvalidInputError: naming the setting.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise InvalidInputError(f"{section}{name} is {value}; expected more than 0")


def check_share(settings: Any, *names: str, section: str = "", zero: bool = False) -> None:
    """Refuses what is no share of a whole; None passes.

    Args:
        settings: Holds the numbers.
        names: Of the settings.
        section: What stands before a name in messages.
        zero: Whether 0 is one.

    Raises:
        InvalidInputError: naming the setting.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not (0 < value <= 1 or (zero and value == 0)):
            interval = "[0, 1]" if zero else "(0, 1]"
            raise InvalidInputError(f"{section}{name} is {value}; expected a number in {interval}")
