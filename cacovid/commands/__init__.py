"""The sub-commands of `cacovid`: each is a configuration dataclass with a method `run`.

Nothing heavy is imported at the top of these files, so that `cacovid --help` is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from cacovid.commands.ask import Ask
from cacovid.commands.bench import Bench
from cacovid.commands.calibrate import Calibrate
from cacovid.commands.common import Command
from cacovid.commands.convert import Convert
from cacovid.commands.demo import Demo
from cacovid.commands.doctor import Doctor
from cacovid.commands.eval import Eval
from cacovid.commands.filter import Filter
from cacovid.commands.overlay import Overlay
from cacovid.commands.report import Report
from cacovid.commands.train import Train

DESCRIPTION = (
    "Keep the video tokens that contribute to a correct answer to this question. "
    "cacovid --version tells the version."
)


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments ask for.

    Raises:
        SystemExit: with status 2 and a message for wrong usage, with 0 after showing the help.
    """
    # As --help lists them: what most people want first.
    commands: Any = (
        Annotated[Ask, tyro.conf.subcommand("ask")]
        | Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[Eval, tyro.conf.subcommand("eval")]
        | Annotated[Overlay, tyro.conf.subcommand("overlay")]
        | Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Calibrate, tyro.conf.subcommand("calibrate")]
        | Annotated[Filter, tyro.conf.subcommand("filter")]
        | Annotated[Convert, tyro.conf.subcommand("convert")]
        | Annotated[Bench, tyro.conf.subcommand("bench")]
        | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    )
    return tyro.cli(
        commands,
        prog="cacovid",
        description=DESCRIPTION,
        args=list(arguments),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
