"""`cacovid ask`: one question on one video, answered from some of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from cacovid.commands.asking import (
    RetentionOption,
    check_overlay,
    check_video,
    named_as_given,
    share_to_keep,
    tokens_line,
    with_its_option,
)
from cacovid.commands.common import (
    Command,
    UsageError,
    check_at_least,
    check_method,
    check_options,
    check_retention,
    use_backend,
    write_json,
    write_line,
)
from cacovid.commands.loading import check_policy, load_model
from cacovid.commands.progress import progress

#: load, read, vision, score+select, prefill, decode
STAGES = 6


@dataclass
class Ask(Command):
    """Ask a question of a video and answer it from some of its tokens.

    Example: cacovid ask clip.mp4 "What colour is the striped ring?" --retention 0.1
    """

    video: Annotated[tyro.conf.Positional[Path], arg(metavar="VIDEO")]
    """Video file."""
    question: Annotated[tyro.conf.Positional[str], arg(metavar="QUESTION")]
    """The question."""
    options: Annotated[tuple[str, ...], arg(metavar="TEXT [TEXT ...]", help_behavior_hint="")] = ()
    """Answers to choose from; they are listed after the question as A, B, C …"""
    retention: RetentionOption = None
    """Share of the video's tokens to keep, above 0 and at most 1."""
    method: Annotated[
        str | None,
        arg(metavar="NAME|DIR|ID", help_behavior_hint="(default: the policy, else attention)"),
    ] = None
    """What chooses the tokens: attention, cdpruner, divprune, dpc_knn, evs, fastv, fastvid,
    fewer_frames, framefusion, holitom, prunevid, random, uniform, vidcom2 or visionzip. Settings
    may follow: attention:2:question takes layer 2, and the question's tokens instead of the last
    one. A policy's directory or Hub id goes here too, as in eval --methods."""
    policy: Annotated[str | None, arg(metavar="DIR|ID", help_behavior_hint="")] = None
    """Directory or Hub id of a trained policy that chooses the tokens."""
    model: Annotated[str, arg(metavar="tiny|DIR|ID")] = "tiny"
    """"tiny" (embedded, nothing to download), a directory, or a Hugging Face Hub id."""
    overlay: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Draw the kept tokens over the frames: .png for a contact sheet, .mp4 for a video."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""
    seed: int = 0
    """Seed of the methods that draw."""
    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    device: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Where the model runs, such as cpu or cuda:0. Default: a GPU if there is one."""
    backend: Annotated[str, arg(metavar="NAME")] = "auto"
    """Implementation of the ops: auto, triton, cuda, cpu or reference."""

    def run(self) -> None:
        """Asks, and prints the answer with what it took."""
        self._check()
        with progress(STAGES + (self.overlay is not None)) as shown:
            shown.stage("load", self.model)
            qa = load_model(self.model, self.policy, self.device, debug=self.debug)
            answer = qa.ask(
                self.video,
                self.question,
                retention=share_to_keep(qa, self.retention, self.method),
                method=self.method,
                options=self.options or None,
                max_new_tokens=self.max_new_tokens,
                seed=self.seed,
                on_stage=shown.stage,
            )
            answer = named_as_given(answer, self.policy or self.method)
            if self.overlay is not None:
                shown.stage("overlay")
                answer.overlay(self.overlay)
        if self.json:
            write_json(self._object(answer))
        else:
            self._print(answer)

    def _check(self) -> None:
        """Refuses what can be refused before a model is loaded."""
        if self.retention is not None:
            check_retention(self.retention)
        check_at_least(self.max_new_tokens, 1, "--max-new-tokens")
        if not self.question.strip():
            raise UsageError("the question is empty")
        if self.method is not None and self.policy is not None:
            raise UsageError(
                f"--method {self.method} and --policy {self.policy} both choose the tokens; "
                f"give one"
            )
        check_options(self.options)
        if self.backend != "auto":
            use_backend(self.backend)
        if self.method is not None:
            check_method(self.method)
        if self.policy is not None:
            check_policy(self.policy)
        check_video(self.video)
        if self.overlay is not None:
            check_overlay(self.overlay, self.video, "--overlay")

    def _object(self, answer: Any) -> dict[str, Any]:
        return {
            "answer": answer.text,
            "tokens": dict(answer.tokens),
            "seconds": {name: round(value, 6) for name, value in answer.timings.items()},
            "method": answer.method,
            "retention": answer.retention,
        }

    def _print(self, answer: Any) -> None:
        facts = self._object(answer)
        seconds = facts["seconds"]
        times = "   ".join(f"{name} {value:.3f}" for name, value in seconds.items())
        from cacovid.models.video_qa import NO_ANSWER

        write_line(with_its_option(answer.text, self.options) or NO_ANSWER)
        write_line()
        write_line(f"tokens   {tokens_line(facts['tokens'])}")
        write_line(f"method   {facts['method']}, retention {answer.retention:g}")
        write_line(f"seconds  {times}   all {sum(seconds.values()):.3f}")
        if self.overlay is not None:
            write_line(f"overlay  {self.overlay}")
