"""`cacovid overlay`: the tokens that are kept of a video for a question, drawn over its frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from cacovid.commands.asking import (
    PictureCommand,
    RetentionOption,
    check_overlay,
    named_as_given,
    share_to_keep,
    with_its_option,
)
from cacovid.commands.common import (
    UsageError,
    check_method,
    check_retention,
    write_json,
    write_line,
)
from cacovid.commands.loading import check_policy
from cacovid.commands.progress import progress

#: load, read, vision, score+select, prefill, decode, overlay
STAGES = 7


@dataclass
class Overlay(PictureCommand):
    """Draw which tokens of a video are kept for a question: .png (contact sheet) or .mp4 (video).

    Example: cacovid overlay clip.mp4 "What colour is the striped ring?" kept.png --retention 0.1
    """

    retention: RetentionOption = None
    """Share of the video's tokens to keep, above 0 and at most 1."""
    method: Annotated[
        str | None,
        arg(metavar="NAME|DIR|ID", help_behavior_hint="(default: the policy, else attention)"),
    ] = None
    """What chooses the tokens: any of cacovid.methods, with settings after colons, or a
    policy's directory or Hub id."""
    policy: Annotated[str | None, arg(metavar="DIR|ID", help_behavior_hint="")] = None
    """Directory or Hub id of a trained policy that chooses the tokens."""

    def run(self) -> None:
        """Asks, and draws."""
        self.check_asking()
        if self.retention is not None:
            check_retention(self.retention)
        check_overlay(self.output, self.video, "FILE")
        if self.method is not None and self.policy is not None:
            raise UsageError(
                f"--method {self.method} and --policy {self.policy} both choose the tokens; give "
                f"one"
            )
        if self.method is not None:
            check_method(self.method)
        if self.policy is not None:
            check_policy(self.policy)
        with progress(STAGES) as shown:
            shown.stage("load", self.model)
            qa = self.load(self.policy)
            answer = qa.ask(
                self.video, self.question,
                retention=share_to_keep(qa, self.retention, self.method), method=self.method,
                options=self.options or None, max_new_tokens=self.max_new_tokens, seed=self.seed,
                on_stage=shown.stage,
            )  # fmt: skip
            answer = named_as_given(answer, self.policy or self.method)
            shown.stage("overlay")
            answer.overlay(self.output)
        if self.json:
            write_json(
                {
                    "overlay": str(self.output),
                    "answer": answer.text,
                    "tokens": dict(answer.tokens),
                    "method": answer.method,
                    "retention": answer.retention,
                }
            )
            return
        from cacovid.models.video_qa import NO_ANSWER

        write_line(with_its_option(answer.text, self.options) or NO_ANSWER)
        write_line(f"overlay  {self.output}")
