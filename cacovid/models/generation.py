"""`generate` on pruned prompts: timed by stage, and which settings an attached model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cacovid.errors import UnsupportedModelError
from cacovid.models.finite import FiniteLogits, check_answers
from cacovid.models.timing import StageClock

#: Stages of `generate`: up to the first token, and from there.
PREFILL, DECODE = "prefill", "decode"

#: Cache implementations that grow with the sequence.
_GROWING = (None, "dynamic", "dynamic_full", "offloaded")

#: Settings that must be unset: each reads the prompt in a way that pruning does not go along with.
_REFUSED = {
    "prefill_chunk_size": "chunked prefill reads the prompt from its ids; a pruned prompt is short",
    "compile_config": "compiled decoding was not made for the shortened prompt's cache",
    "prompt_lookup_num_tokens": "assisted decoding reads the prompt a second time",
    "assistant_model": "assisted decoding reads the prompt a second time",
    "custom_generate": "custom decoding loops may read the prompt a second time",
    "negative_prompt_ids": "a negative prompt has no pruned counterpart",
}

#: `max_length` of transformers' configurations that nobody set.
_DEFAULT_MAX_LENGTH = (None, 20)


def check_generation(
    model: Any, config: Any, kwargs: Mapping[str, Any], args: Sequence[Any] = ()
) -> None:
    """Refuses the settings with which an attached `generate` would not be exact.

    Args:
        model: The model.
        config: The call's `generation_config`, or None.
        kwargs: The call's keyword arguments.
        args: Its other positional arguments.

    Raises:
        UnsupportedModelError: naming the setting and what to do.
    """
    if args:
        raise UnsupportedModelError(
            "generate of an attached model takes inputs and generation_config by place; pass "
            "everything else by name"
        )
    for name, reason in _REFUSED.items():
        if setting(model, config, kwargs, name) is not None:
            raise UnsupportedModelError(
                f"{name} is set, which attach does not take: {reason}. Leave it out"
            )
    cache = setting(model, config, kwargs, "cache_implementation")
    if cache not in _GROWING:
        raise UnsupportedModelError(
            f"cache_implementation is {cache!r}; attach is exact with the dynamic cache only. "
            f"Leave it out, or call generate(**prune_inputs(...).inputs)"
        )
    past = kwargs.get("past_key_values")
    if past is not None and (type(past).__name__ != "DynamicCache" or past.get_seq_length()):
        raise UnsupportedModelError(
            f"past_key_values is a {type(past).__name__}; attach takes an empty DynamicCache only"
        )


def shift_lengths(model: Any, config: Any, kwargs: dict[str, Any], removed: int) -> None:
    """Makes `max_length` and `min_length`, which count the prompt, count the original prompt.

    Args:
        model: The model.
        config: The call's `generation_config`, or None.
        kwargs: The call's options; changed in place.
        removed: By how much the prompt became shorter.
    """
    longest = setting(model, config, kwargs, "max_length")
    given = kwargs.get("max_length") is not None or longest not in _DEFAULT_MAX_LENGTH
    if given and setting(model, config, kwargs, "max_new_tokens") is None:
        kwargs["max_length"] = longest - removed
    shortest = setting(model, config, kwargs, "min_length")
    if shortest and setting(model, config, kwargs, "min_new_tokens") is None:
        kwargs["min_length"] = max(0, shortest - removed)


def fixed_settings() -> dict[str, None]:
    """Settings that go to `generate` with a pruned prompt, because another value would be wrong.

    Chunked prefill reads the prompt from its ids, where the video is missing. Since transformers
    5.23 it fails on a prompt that comes as embeddings; before, it answered without the video.
    There, the setting goes along as None: it overrules configurations, and who names it in the
    call gets Python's error for an argument given twice.
    """
    return {"prefill_chunk_size": None} if release() < (5, 23) else {}


def release() -> tuple[int, int]:
    """Major and minor number of the installed transformers."""
    import transformers

    major, minor = transformers.__version__.split(".")[:2]
    return int(major), int(minor)


def setting(model: Any, config: Any, kwargs: Mapping[str, Any], name: str) -> Any:
    """A setting as `generate` finds it: in the call, in its configuration, in the model's."""
    if kwargs.get(name) is not None:
        return kwargs[name]
    for source in (config, getattr(model, "generation_config", None)):
        value = getattr(source, name, None)
        if value is not None:
            return value
    return None


def generate_timed(
    model: Any, tokenizer: Any, inputs: Mapping[str, Any], clock: StageClock, max_new_tokens: int
) -> str:
    """The greedy answer to one prompt; its time goes to the stages `prefill` and `decode`.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        inputs: As `PrunedInputs.inputs`, of one prompt.
        clock: Gets the seconds.
        max_new_tokens: The longest answer, in tokens.

    Returns:
        The answer's text, without special tokens and space around it.

    Raises:
        InvalidInputError: for logits that are NaN or infinite.
    """
    first, finite = _FirstToken(clock), FiniteLogits()
    clock.announce(PREFILL)
    begin = clock.now()
    out = model.generate(
        **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
        stopping_criteria=[first], logits_processor=[finite],
    )  # fmt: skip
    end = clock.now()
    prefilled = first.seconds if first.seconds is not None else end
    clock.add(PREFILL, prefilled - begin)
    clock.add(DECODE, end - prefilled)
    check_answers(finite.broken(), ["this question"], model)
    new = out[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


class _FirstToken:
    """A stopping criterion that stops nothing and notes when the first token was there."""

    def __init__(self, clock: StageClock) -> None:
        self._clock = clock
        self.seconds: float | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.seconds is None:
            self.seconds = self._clock.now()
            self._clock.announce(DECODE)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
