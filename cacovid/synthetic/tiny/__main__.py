"""Trains and evaluates the embedded model.

    python -m cacovid.synthetic.tiny train --work runs/tiny --output cacovid/assets/tiny
    python -m cacovid.synthetic.tiny evaluate --output bench/results/tiny-model.md

`train` may be stopped at any time and run again: it takes up at the last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

EPILOG = (
    "Training needs about 7 GB of disk and 2 hours on 2 cores. Beside other work, run it with "
    "OMP_WAIT_POLICY=PASSIVE: busy waiting makes two jobs on the same cores many times slower."
)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m cacovid.synthetic.tiny", description="The embedded model.", epilog=EPILOG
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train from nothing and store the model")
    train.add_argument("--work", type=Path, default=Path("runs/tiny"), help="clips, checkpoints")
    train.add_argument("--output", type=Path, default=Path("cacovid/assets/tiny"))
    train.add_argument("--threads", type=int, default=os.cpu_count())
    train.add_argument("--clips", type=int, help="training clips")
    train.add_argument("--vision-steps", type=int, help="steps of the vision tower")
    train.add_argument(
        "--language-steps", type=int, nargs="+", help="steps of each stage of the language model"
    )
    evaluate = commands.add_parser("evaluate", help="write the table of accuracies and the gate")
    evaluate.add_argument("--model", type=Path, default=Path("cacovid/assets/tiny"))
    evaluate.add_argument("--output", type=Path, default=Path("bench/results/tiny-model.md"))
    evaluate.add_argument("--splits", nargs="+", default=["test", "shifted"])
    evaluate.add_argument("--scenes", type=int, default=300, help="clips of each set")
    evaluate.add_argument("--seed", type=int, default=0, help="another seed: fresh scenes")
    evaluate.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    return _train(args) if args.command == "train" else _evaluate(args)


def _train(args: argparse.Namespace) -> int:
    from cacovid.synthetic.tiny.export import export
    from cacovid.synthetic.tiny.recipe import Recipe, train

    recipe = Recipe()
    if args.clips is not None:
        recipe.clips = args.clips
    if args.vision_steps is not None:
        recipe.vision_steps = args.vision_steps
    if args.language_steps is not None:
        stages = recipe.language.stages
        if len(args.language_steps) != len(stages):
            raise SystemExit(
                f"--language-steps: {len(args.language_steps)} numbers given, one for each of "
                f"the {len(stages)} stages expected"
            )
        recipe.language.stages = tuple(
            replace(stage, steps=steps)
            for stage, steps in zip(stages, args.language_steps, strict=True)
        )
    model, tokenizer = train(args.work, recipe)
    export(model, tokenizer, args.output)
    print(f"stored in {args.output}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    import torch
    from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

    from cacovid.synthetic.tiny import report
    from cacovid.synthetic.tiny.evaluate import agreement, make_test_set

    model = LlavaOnevisionForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tables = {}
    agreed: list[str] = []
    for split in args.splits:
        print(f"{split}: making {args.scenes} clips", file=sys.stderr, flush=True)
        test = make_test_set(model, split, args.scenes, seed=args.seed)
        same, asked = agreement(args.model, tokenizer, model, test)
        agreed.append(f"{same} of {asked} answers on {split} are the same word for word")
        print(f"{split}: {len(test.asked)} questions", file=sys.stderr, flush=True)
        tables[split] = report.measure(model, tokenizer, test)
    command = (
        f"python -m cacovid.synthetic.tiny evaluate --splits {' '.join(args.splits)} "
        f"--scenes {args.scenes} --seed {args.seed}"
    )
    page = report.render(tables, command, "; ".join(agreed) + ".")
    report.write_page(args.output, page)
    print(page)
    return 0 if all(line.passed for table in tables.values() for line in report.gate(table)) else 1


if __name__ == "__main__":
    sys.exit(main())
