"""The prompt of a further question on a video, without preparing its frames again.

A processor turns a video's placeholder into the tokens that stand for it: one per feature, for some
models with text between them. What it put there is the difference between the first prompt as the
tokenizer reads it and as the processor returned it; it is put into the further prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError


class FurtherPrompt:
    """Model inputs of further prompts that begin as the first one did, up to the video's end.

    Args:
        tokenizer: The model's tokenizer.
        text: The first prompt, as it went to the processor.
        inputs: What the processor made of it: one prompt, without padding.

    Raises:
        InvalidInputError: if the inputs hold several prompts.
    """

    def __init__(self, tokenizer: Any, text: str, inputs: Mapping[str, Any]) -> None:
        ids = inputs["input_ids"]
        if ids.shape[0] != 1:
            raise InvalidInputError(
                f"input_ids is {tuple(ids.shape)}; further prompts are made of one prompt, [1, W]"
            )
        self._tokenizer = tokenizer
        plain, full = self._plain(text), ids[0].tolist()
        begin = _common(plain, full)
        end = _common(plain[begin:][::-1], full[begin:][::-1])
        # Both end in the text after the video; what lies before it differs by the video's tokens.
        self._plain_begin = plain[: len(plain) - end]
        self._length = len(full) - end
        self._first = {
            name: value for name, value in inputs.items() if not name.startswith("pixel_values")
        }

    def __call__(self, text: str) -> dict[str, Any]:
        """The inputs of a prompt, without pixels: for a call with the video's features.

        Args:
            text: The prompt with the placeholder, as it would go to the processor.

        Returns:
            `input_ids` and all that is laid out like it, `[1, W]`, and the rest as it was.

        Raises:
            InvalidInputError: if the prompt begins otherwise than the first one.
        """
        plain, begin = self._plain(text), self._plain_begin
        if plain[: len(begin)] != begin:
            raise InvalidInputError(
                f"the prompt {text[:80]!r}... begins otherwise than the first one did; whatever "
                f"stands before the video has to stay"
            )
        shape = self._first["input_ids"].shape
        tail = plain[len(begin) :]
        out = {}
        for name, value in self._first.items():
            if isinstance(value, Tensor) and value.shape == shape:
                new = value.new_tensor([_tail(name, tail)])
                value = torch.cat((value[:, : self._length], new), dim=1)
            out[name] = value
        return out

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer([text])["input_ids"][0])


def _tail(name: str, ids: Sequence[int]) -> Sequence[int]:
    if name == "input_ids":
        return ids
    # Token types (mm_token_type_ids) count text as 0.
    return [int(name == "attention_mask")] * len(ids)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading entries are equal."""
    differs = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differs, min(len(a), len(b)))
