"""Every environment variable that `cacovid` or its build reads, in one table.

No other file asks the environment for a name that begins with `CACOVID_`. Values are read when
they are asked for, so that a program may set them after the import.

>>> for variable in VARIABLES.values():
...     print(variable.name, variable.default or "(unset)")
CACOVID_BACKEND auto
CACOVID_CUDA auto
CACOVID_CUDA_ARCHITECTURES (unset)
CACOVID_SANITIZE none
CACOVID_SKIP_NATIVE 0
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cacovid.errors import InvalidInputError


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    Args:
        name: As it is written in the shell.
        default: The value when it is unset or empty.
        choices: The values that are accepted; empty where any text is.
        meaning: One sentence for the reader of the table.
        when: `"run"` if read by the library, `"build"` if read by `setup.py` alone.
    """

    name: str
    default: str
    choices: tuple[str, ...]
    meaning: str
    when: str


#: The table, by name.
VARIABLES: dict[str, Variable] = {
    variable.name: variable
    for variable in (
        Variable(
            "CACOVID_BACKEND",
            "auto",
            ("auto", "triton", "cuda", "cpu", "reference"),
            "Which implementation of the ops serves; auto: the fastest that is there.",
            "run",
        ),
        Variable(
            "CACOVID_CUDA",
            "auto",
            ("auto", "0", "1"),
            "Compile the CUDA library: auto where nvcc is, 0 never, 1 or fail.",
            "build",
        ),
        Variable(
            "CACOVID_CUDA_ARCHITECTURES",
            "",
            (),
            "CUDA architectures in CMake's notation, such as 90-real;100-real.",
            "build",
        ),
        Variable(
            "CACOVID_SANITIZE",
            "none",
            ("none", "address", "undefined"),
            "Sanitizer that the C++ code is compiled with, see `make sanitize`.",
            "build",
        ),
        Variable(
            "CACOVID_SKIP_NATIVE",
            "0",
            ("0", "1"),
            "1: install without the compiled part; the reference serves.",
            "build",
        ),
    )
}


def get(name: str) -> str:
    """The value of one variable of the table, or its default.

    Args:
        name: A key of `VARIABLES`.

    Raises:
        KeyError: if the table has no such variable.
        InvalidInputError: if the variable is set to something that it does not accept.
    """
    variable = VARIABLES[name]
    value = os.environ.get(name) or variable.default
    if variable.choices and value not in variable.choices:
        raise InvalidInputError(
            f"{name} is {value!r}; expected one of {', '.join(variable.choices)} "
            f"(unset it for {variable.default!r})"
        )
    return value


def is_set(name: str) -> bool:
    """Whether the environment sets a variable of the table (empty counts as unset)."""
    return bool(os.environ.get(VARIABLES[name].name))


def raw(name: str) -> str:
    """What the environment says, unchecked; empty where it is unset. For reports."""
    return os.environ.get(VARIABLES[name].name, "")


def backend() -> str:
    """The backend that is asked for: `auto`, `triton`, `cuda`, `cpu` or `reference`.

    Raises:
        InvalidInputError: if `CACOVID_BACKEND` names no backend.
    """
    return get("CACOVID_BACKEND")


def table() -> str:
    """The table as Markdown, for the documentation and `cacovid doctor`."""
    rows = ["| variable | values | read by | meaning |", "|---|---|---|---|"]
    for variable in VARIABLES.values():
        values = ", ".join(
            f"**{choice}**" if choice == variable.default else choice for choice in variable.choices
        )
        reader = "the library" if variable.when == "run" else "the build"
        rows.append(f"| `{variable.name}` | {values or 'any'} | {reader} | {variable.meaning} |")
    return "\n".join(rows)
