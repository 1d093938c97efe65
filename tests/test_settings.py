"""The table of environment variables."""

from __future__ import annotations

import pytest

from cacovid import settings
from cacovid.errors import InvalidInputError


@pytest.mark.parametrize("name", list(settings.VARIABLES))
def test_default_and_every_choice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = settings.VARIABLES[name]
    for unset in (None, ""):
        monkeypatch.delenv(name, raising=False)
        if unset is not None:
            monkeypatch.setenv(name, unset)
        assert settings.get(name) == variable.default
        assert not settings.is_set(name)
    for choice in variable.choices:
        monkeypatch.setenv(name, choice)
        assert settings.get(name) == choice
        assert settings.is_set(name) and settings.raw(name) == choice


def test_wrong_value_names_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACOVID_BACKEND", "gpu")
    with pytest.raises(InvalidInputError, match=r"CACOVID_BACKEND is 'gpu'.*triton.*reference"):
        settings.backend()


def test_only_names_of_the_table_can_be_asked_for() -> None:
    with pytest.raises(KeyError):
        settings.get("CACOVID_NOT_THERE")


def test_table_lists_every_variable_with_its_default() -> None:
    rows = settings.table().splitlines()[2:]
    assert len(rows) == len(settings.VARIABLES)
    for row, variable in zip(rows, settings.VARIABLES.values(), strict=True):
        assert variable.name in row and variable.meaning in row
        assert not variable.choices or f"**{variable.default}**" in row
