"""The blind-test filter: questions that need no video teach nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cacovid.errors import InvalidInputError
from cacovid.files import write_text
from cacovid.models.finite import FiniteLogits, check_answers
from cacovid.train.choices import letter_ids
from cacovid.train.data import Samples, TrainingSample
from cacovid.train.marking import mark
from cacovid.train.provenance import as_json, differences, digest
from cacovid.train.wording import word_problem

#: A mark from which a blind answer counts as right.
BLIND_RIGHT = 0.99


class BlindReader:
    """Answers questions from their text alone.

    Args:
        model: The frozen model.
        processor: Its processor.
        max_new_tokens: Of a generated answer.
    """

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 64) -> None:
        self.model = model
        self.processor = processor
        self.max_new_tokens = max_new_tokens

    @torch.no_grad()
    def __call__(self, sample: TrainingSample) -> float:
        """The mark of the answer to a question without its video.

        Raises:
            InvalidInputError: for logits that are NaN or infinite.
        """
        tokenizer, name = self.processor.tokenizer, f"sample {sample.id!r}"
        content = [{"type": "text", "text": word_problem(sample)}]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        batch = tokenizer([prompt], return_tensors="pt").to(self.model.device)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if sample.problem_type == "multiple choice":
            ids = letter_ids(tokenizer, sample.letters)
            logits = self.model(**inputs, logits_to_keep=1, use_cache=False).logits[0, -1, ids]
            logits = logits.float().cpu()
            check_answers([not bool(logits.isfinite().all())], [name], self.model)
            return float(sample.letters[int(logits.argmax())] == sample.solution)
        finite = FiniteLogits()
        out = self.model.generate(
            **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, logits_processor=[finite]
        )
        check_answers(finite.broken(), [name], self.model)
        text = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return mark(text, sample.solution, sample.problem_type)


@dataclass(frozen=True)
class Filtered:
    """What the filter decided.

    Args:
        kept: Ids of the questions that need their video.
        dropped: Ids of those answered without it.
    """

    kept: tuple[str, ...]
    dropped: tuple[str, ...]


def filter_blind(
    samples: Samples,
    reader: Callable[[TrainingSample], float],
    output: Path,
    header: Mapping[str, Any],
    on_sample: Callable[[int], None] = lambda done: None,
) -> Filtered:
    """Drops what is answered rightly without the video; resumable.

    Marks are appended to `OUTPUT.part` as they come, behind a line that says what they depend on,
    so that a stopped run goes on where it was, and no other run goes on with its marks. The list
    itself is written at the end, whole. Reading from text alone is cheap: the video is
    never opened.

    Args:
        samples: The questions.
        reader: Marks a blind answer, e.g. a `BlindReader`.
        output: The list: `{"kept": [...], "dropped": [...]}`, with what the data's reading left
            out and renamed.
        header: What the marks depend on besides the questions: model, weights, precision.
        on_sample: Called with the number of questions done.

    Raises:
        InvalidInputError: if the output is a folder, nothing would be left, or `OUTPUT.part` is of
            another run.
    """
    if output.is_dir():
        raise InvalidInputError(f"{output} is a folder; expected the name of the list to write")
    part = output.with_name(output.name + ".part")
    output.parent.mkdir(parents=True, exist_ok=True)
    own = as_json({**header, "questions": digest(samples)})
    marks = _read_marks(part, own)
    with open(part, "a", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write(json.dumps(own) + "\n")
        for number, sample in enumerate(samples):
            if sample.id not in marks:
                marks[sample.id] = float(reader(sample))
                file.write(json.dumps([sample.id, marks[sample.id]]) + "\n")
                file.flush()
            on_sample(number + 1)
    kept = tuple(s.id for s in samples if marks[s.id] < BLIND_RIGHT)
    dropped = tuple(s.id for s in samples if marks[s.id] >= BLIND_RIGHT)
    if not kept:
        raise InvalidInputError(
            f"all {len(dropped)} questions are answered rightly without their videos; this data "
            f"cannot teach a policy"
        )
    listed = {"kept": kept, "dropped": dropped, **samples.listing()}
    write_text(output, json.dumps(listed, indent=1) + "\n")
    part.unlink()
    return Filtered(kept, dropped)


def _read_marks(path: Path, header: Mapping[str, Any]) -> dict[str, float]:
    """Marks of a stopped run of this header; a line that a kill cut off is taken away."""
    if not path.exists():
        return {}
    # What stands behind the last line feed was cut off.
    lines = path.read_bytes().split(b"\n")[:-1]
    os.truncate(path, sum(len(line) + 1 for line in lines))
    if not lines:
        return {}
    try:
        there = json.loads(lines[0])
        marks = {str(name): float(value) for name, value in map(json.loads, lines[1:])}
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f"{path} holds no marks of a stopped run ({error}); take it away to begin anew"
        ) from error
    if told := differences(there, header):
        raise InvalidInputError(
            f"{path} holds marks of another run ({told}). Give the same configuration to go on, "
            f"name another list, or take the file away to begin anew"
        )
    return marks
