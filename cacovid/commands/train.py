"""`cacovid train`: a policy, from one configuration file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from cacovid.commands.common import (
    Command,
    UsageError,
    tell_left_out,
    write_json,
    write_line,
)
from cacovid.commands.progress import progress, steps_bar


@dataclass
class Train(Command):
    """Train a policy by rewards of a frozen model (CPO, SCORE), as a configuration file says.

    Example: cacovid train bench/configs/tiny-cross-attention.yaml

    On several GPUs: accelerate launch -m cacovid train CONFIG
    """

    config: Annotated[tyro.conf.Positional[Path], arg(metavar="CONFIG")]
    """YAML or JSON file; see docs/training.md."""
    resume: bool = False
    """Go on from the last checkpoint in the output folder; the result is the same, bit for bit."""
    dry_run: bool = False
    """Load everything, do one step without writing, and tell sizes and memory."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> None:
        """Trains, and prints the evaluation before and after."""
        import json

        from cacovid.commands.loading import check_device, check_packages, quiet_libraries
        from cacovid.files import write_text
        from cacovid.train.config import read_config
        from cacovid.train.run import prepare

        config = read_config(self.config)
        output = Path(config.output)
        if not self.resume and not self.dry_run and (output / "checkpoints").exists():
            raise UsageError(
                f"{output} holds checkpoints of an earlier run; give --resume to go on with it, "
                f"or name another output folder"
            )
        if config.device is not None:
            check_device(config.device, f"{self.config}: device")
        check_packages()
        if not self.debug:
            quiet_libraries()
        with progress(2) as shown:
            run = prepare(config, shown.stage)
        listed = f"a run lists them all in {output / 'left_out.json'}"
        tell_left_out(run.samples, listed)
        tell_left_out(run.held_out, listed)
        sections = [stage.data for stage in config.stages] or [config.data]
        own = any(section.file or section.images for section in sections)
        if own and run.held_out and not config.evaluation.file:
            sys.stderr.write(
                "the held-out questions are those of the embedded task; for questions of your own "
                "give evaluation a file, on other videos than the data\n"
            )
        if self.dry_run:
            self._dry_run(run)
            return
        with steps_bar("Training", config.training.steps) as bar:
            trainer = run.trainer(on_step=bar.step, on_warning=bar.note)
            first = trainer.resume() if self.resume else 0
            if trainer.is_main:
                output.mkdir(parents=True, exist_ok=True)
                write_text(output / "left_out.json", json.dumps(run.samples.listing()) + "\n")
            before = _stored(output / "before.json") if first else None
            if before is None and trainer.is_main:
                bar.note("evaluating greedy selection before training")
                before = _evaluate(run, output / "before.json")
            trainer.catch_up()
            trainer.train(first)
            after = None
            if trainer.is_main:
                bar.note("evaluating greedy selection after training")
                after = _evaluate(run, output / "after.json")
            trainer.catch_up()
            trainer.close()
            if not trainer.is_main:
                return
        self._report(run, trainer, before, after)

    def _dry_run(self, run: Any) -> None:
        import tempfile
        from dataclasses import replace

        from cacovid.train.curriculum import Curriculum
        from cacovid.train.estimate import estimate_memory

        prepared = run.reward.prepare(run.samples[0])
        memory = estimate_memory(
            run.reward.model,
            run.policy,
            run.config.reward.batch_tokens,
            prepared.prompt.embeds.shape[0] * run.config.training.samples_per_step,
        )
        with tempfile.TemporaryDirectory() as folder:
            settings = replace(run.config.training, steps=1, checkpoint_every=1)
            run.config = replace(run.config, training=settings, stages=(), output=folder)
            run.curriculum = Curriculum.of(run.samples, 1)
            entry: list[dict[str, float]] = []
            trainer = run.trainer(on_step=lambda step, log: entry.append(log or {}))
            trainer.train(0)
            trainer.close()
            if not trainer.is_main:
                return
        facts = {
            "samples": len(run.samples),
            "skipped": len(run.samples.skipped),
            "video_tokens": prepared.prompt.grid.num_tokens,
            "policy_weights": sum(p.numel() for p in run.policy.parameters()),
            "memory": memory,
            "reward": entry[-1].get("reward"),
        }
        if self.json:
            write_json(facts)
            return
        write_line(f"samples          {facts['samples']:,} (left out: {facts['skipped']:,})")
        write_line(f"video tokens     {facts['video_tokens']:,} in the first sample")
        write_line(f"policy weights   {facts['policy_weights']:,}")
        for name, size in memory.items():
            write_line(f"memory, {name:<9}{size / 2**20:,.0f} MiB")
        write_line("one step was done; nothing was written")

    def _report(self, run: Any, trainer: Any, before: Any, after: Any) -> None:
        retention = run.config.evaluation.retention
        policy = Path(run.config.output) / "policy"
        if self.json:
            write_json(
                {
                    "policy": str(policy),
                    "retention": retention,
                    "before": before,
                    "after": after,
                    "unreadable": len(trainer.unreadable),
                }
            )
            return
        if before is not None and after is not None:
            write_line(
                f"greedy selection at {retention:.0%}, {after['questions']} held-out questions: "
                f"{before['accuracy']:.3f} before, {after['accuracy']:.3f} after"
            )
        if trainer.unreadable:
            listed = Path(run.config.output) / "unreadable.json"
            count = len(trainer.unreadable)
            write_line(f"samples with unreadable videos: {count}, listed in {listed}")
        if after is not None and after["unreadable"]:
            write_line(f"held-out questions without a readable video: {len(after['unreadable'])}")
        write_line(f"policy: {policy}")


def _evaluate(run: Any, path: Path) -> dict[str, Any] | None:
    import json

    from cacovid.files import write_text

    result = run.evaluate()
    if result is None:
        return None
    facts = {
        "accuracy": result.accuracy,
        "questions": len(result.marks),
        "unreadable": dict(result.unreadable),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(facts) + "\n")
    return facts


def _stored(path: Path) -> dict[str, Any] | None:
    import json

    return json.loads(path.read_text()) if path.exists() else None
