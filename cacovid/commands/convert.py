"""`cacovid convert`: the policy out of a published checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from cacovid.commands.common import (
    Command,
    UsageError,
    check_output_folder,
    no_directory,
    write_json,
    write_line,
)
from cacovid.models.defaults import is_place


@dataclass
class Convert(Command):
    """Take the policy out of a checkpoint that holds it beside the language model.

    Only the tensors named compression_policy.* are read, from the Hub too; they are written as
    this project stores policies, read again and checked.

    Example: cacovid convert moraleyc/CaCoVID_LLaVA-OneVision policies/cacovid
    """

    source: Annotated[tyro.conf.Positional[str], arg(metavar="DIR|ID")]
    """Directory or Hub id of the checkpoint."""
    output: Annotated[tyro.conf.Positional[Path], arg(metavar="FOLDER")]
    """Where to write the policy."""
    base_model: Annotated[str | None, arg(metavar="ID", help_behavior_hint="")] = None
    """Name of the model that the policy is for, stored with it."""
    policy_share: float = 0.5
    """Share of the budget that the scores choose, stored with it."""
    revision: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Branch, tag or commit on the Hub."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> None:
        """Converts, and prints what was written."""
        if not 0.0 <= self.policy_share <= 1.0:
            raise UsageError(f"--policy-share is {self.policy_share:g}; expected 0 to 1")
        if (self.output / "config.json").exists():
            raise UsageError(f"{self.output} holds a config.json already; give another folder")
        check_output_folder(self.output, "FOLDER")
        if not is_place(self.source):
            raise UsageError(
                f"{no_directory(self.source)}; expected one with a published "
                f"checkpoint, or a Hub id such as moraleyc/CaCoVID_LLaVA-OneVision"
            )
        from cacovid.commands.progress import progress
        from cacovid.policies.published import convert_checkpoint

        with progress(1) as shown:
            shown.stage("convert", self.source)
            done = convert_checkpoint(
                self.source, self.output, base_model=self.base_model,
                policy_share=self.policy_share, revision=self.revision,
            )  # fmt: skip
        facts = {
            "folder": str(self.output),
            "hidden_size": done.policy.config.hidden_size,
            "tensors": done.tensors,
            "parameters": done.parameters,
            "bytes_read": done.bytes_read,
            "left_out": len(done.left_out),
        }
        if self.json:
            write_json(facts)
            return
        write_line(f"policy   {self.output}: {done.tensors} tensors, {done.parameters:,} weights")
        write_line(f"for      hidden size {facts['hidden_size']}, {self.base_model or 'any model'}")
        write_line(f"read     {done.bytes_read:,} bytes of {self.source}")
