"""`attach`: pruning for code that must call `model.generate(**inputs)` itself.

Three callables of the *instance* are replaced while the context lasts: `generate`, `forward`, and
the inner model's `forward`, for the thread that entered it. No class is touched, and leaving
restores the instance exactly.
"""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ContextDecorator, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.models.base import Adapter, Positions
from cacovid.models.generation import check_generation, shift_lengths
from cacovid.models.inside import running
from cacovid.models.own_thread import is_replaced, replaced
from cacovid.models.prune import PrunedInputs, prepare_inputs
from cacovid.models.registry import adapter_for
from cacovid.models.resolve import resolve_method
from cacovid.types import Grid, PerVideo


class Attachment:
    """What `attach` hands out: the settings, and the last prompt that was pruned.

    Attributes:
        last: The latest `PrunedInputs`; None before the first call.
        question: As in `prune_inputs`; may be set between calls.
    """

    def __init__(self, prune: Callable[..., PrunedInputs], question: Any) -> None:
        self._prune = prune
        self._generate: Callable[..., Any] | None = None
        self._used = False
        self.question = question
        self.last: PrunedInputs | None = None

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate` as it is in the block, for a thread that the block starts.

        A streamer is read in one thread while `generate` runs in another, in which `model.generate`
        itself prunes nothing.

        Args:
            *args: As of `model.generate`.
            **kwargs: Likewise.

        Raises:
            UnsupportedModelError: if the model has no `generate`, and what the attached one raises.
        """
        if self._generate is None:
            raise UnsupportedModelError("the attached model has no generate; call the model itself")
        return self._generate(*args, **kwargs)

    def prune(self, inputs: Mapping[str, Any]) -> PrunedInputs:
        """Prunes by the settings that were attached."""
        self._used = True
        self.last = self._prune(inputs=inputs, question=self.question)
        return self.last


class _Attaching(ContextDecorator, AbstractContextManager[Attachment]):
    """What `attach` returns: it warns when it is thrown away without having been entered."""

    def __init__(self, begin: Callable[[], AbstractContextManager[Attachment]]) -> None:
        self._begin = begin
        self._entered: AbstractContextManager[Attachment] | None = None

    def __enter__(self) -> Attachment:
        self._entered = self._begin()
        return self._entered.__enter__()

    def __exit__(self, *raised: Any) -> bool | None:
        assert self._entered is not None
        return self._entered.__exit__(*raised)

    def __del__(self) -> None:
        if self._entered is None:
            warnings.warn(
                "cacovid.attach was called and not entered, so that nothing is pruned; write "
                "`with cacovid.attach(model, ...) as attached:` around the calls of the model",
                RuntimeWarning,
                stacklevel=2,
            )


def attach(
    model: nn.Module,
    policy_or_method: Any,
    retention: PerVideo,
    *,
    seed: int = 0,
    positions: Positions = "original",
    question: Any = None,
    tokenizer: Any = None,
) -> AbstractContextManager[Attachment]:
    """While it lasts, `model.generate(**inputs)` and `model(**inputs)` read pruned prompts.

    `generate` returns the *original* prompt ids in front of the answer, so that code that cuts
    `out[:, input_len:]` still works. Prompts without a video run as ever. `model(**inputs)` returns
    logits of the shortened prompt; labels are shortened with it.

    All of it holds for the thread that entered: other threads may run the same model meanwhile, as
    it is or attached by themselves. A thread that the block starts, e.g. beside a
    `TextIteratorStreamer`, calls `generate` of what `attach` yields instead of the model's.
    It is not for `torch.nn.DataParallel`, whose copies run in threads of their own; attach the
    model in each process of `DistributedDataParallel` instead.

    Args:
        model: The model; nothing but this instance changes.
        policy_or_method: As in `prune_inputs`, or a method that prunes inside the language model
            (one prompt at a time).
        retention: As in `prune_inputs`.
        seed: As in `prune_inputs`.
        positions: As in `prune_inputs`.
        question: As in `prune_inputs`; by default found from the template's markers.
        tokenizer: As in `prune_inputs`.

    Returns:
        A context manager, for `with`. It yields an `Attachment`, whose `last` is the latest
        `PrunedInputs`.

    Warns:
        RuntimeWarning: where the block ends and the model was not called through it, or no block
            was ever begun (`attach` without `with`), so that nothing can have been pruned.

    Raises:
        UnsupportedModelError: when the block begins, for a model without adapter, a compiled model,
            a model that this thread has attached already; in `generate`, for settings that are not
            exact: chunked prefill, static or compiled caches, assisted decoding, inputs_embeds
            alone.
    """
    return _Attaching(
        functools.partial(
            _attached, model, policy_or_method, retention, seed=seed, positions=positions,
            question=question, tokenizer=tokenizer,
        )
    )  # fmt: skip


@contextmanager
def _attached(
    model: Any,
    policy_or_method: Any,
    retention: PerVideo,
    *,
    seed: int,
    positions: Positions,
    question: Any,
    tokenizer: Any,
) -> Iterator[Attachment]:
    adapter = adapter_for(model)
    inner = adapter.inner_model(model)
    # torch.compile(model) wraps; model.compile() leaves its result on the instance.
    if hasattr(model, "_orig_mod") or any(
        vars(module).get("_compiled_call_impl") is not None for module in (model, inner)
    ):
        raise UnsupportedModelError(
            "the model is compiled by torch.compile, which would not see the pruning; attach the "
            "plain model, or use prune_inputs"
        )
    if is_replaced(model, "forward"):
        raise UnsupportedModelError(
            "the model is attached already; leave the first attach before you enter another one"
        )
    if isinstance(retention, (int, float)):
        Grid([(1, 1, 1)]).budgets(retention)
    method = resolve_method(policy_or_method, model)
    attachment = Attachment(
        functools.partial(
            prepare_inputs, model, method=method, retention=retention, seed=seed,
            positions=positions, tokenizer=tokenizer,
        ),
        question,
    )  # fmt: skip
    # Decoding steps, and the forward inside a pruned forward, run in the thread that pruned.
    inside = threading.local()
    forward = functools.partial(_wrap_forward, model, adapter, attachment, inside)
    replacements = [(module, "forward", forward) for module in dict.fromkeys((model, inner))]
    if hasattr(model, "generate"):
        generate = functools.partial(_wrap_generate, model, adapter, attachment, inside)
        replacements.insert(0, (model, "generate", generate))
    with replaced(*replacements):
        yield attachment
    if not attachment._used:
        warnings.warn(
            "nothing was pruned: the model was not called in the thread that attached it while it "
            "was attached. Other threads run it as it is: attach in each of them, or have them "
            "call generate of what attach yields",
            RuntimeWarning,
            stacklevel=4,  # the end of the caller's block
        )


@contextmanager
def _entered(inside: threading.local) -> Iterator[None]:
    before = getattr(inside, "depth", 0)
    inside.depth = before + 1
    try:
        yield
    finally:
        inside.depth = before


def _wrap_generate(
    model: Any,
    adapter: Adapter,
    attachment: Attachment,
    inside: threading.local,
    original: Callable[..., Any],
) -> Callable[..., Any]:
    @functools.wraps(original)
    def generate(
        inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        attachment._used = True
        if inputs is not None:
            if kwargs.get("input_ids") is not None:
                raise InvalidInputError("give the prompt once: as inputs, or as input_ids")
            kwargs["input_ids"] = inputs
        if getattr(inside, "depth", 0) or not _prunable(adapter, kwargs):
            with _entered(inside):
                return original(None, generation_config, *args, **kwargs)
        check_generation(model, generation_config, kwargs, args)
        prompt, options = _split_kwargs(model, kwargs)
        pruned = attachment.prune(prompt)
        shift_lengths(model, generation_config, options, pruned.removed)
        with _entered(inside), running(model, pruned.hook):
            out = original(None, generation_config, *args, **{**options, **pruned.inputs})
        return _with_original_prompt(out, prompt["input_ids"], pruned)

    attachment._generate = generate
    return generate


def _wrap_forward(
    model: Any,
    adapter: Adapter,
    attachment: Attachment,
    inside: threading.local,
    original: Callable[..., Any],
) -> Callable[..., Any]:
    names = list(inspect.signature(original).parameters)

    # `wraps` keeps the signature, by which generate decides what the model takes.
    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        attachment._used = True
        if getattr(inside, "depth", 0):
            return original(*args, **kwargs)
        kwargs.update(zip(names, args, strict=False))
        if kwargs.get("past_key_values") is not None and adapter.has_video(kwargs):
            raise UnsupportedModelError(
                "a forward with a cache and a video came to an attached model from outside its "
                "generate; call model.generate, or prune_inputs before your own decoding loop"
            )
        with _entered(inside):
            if not _prunable(adapter, kwargs):
                return original(**kwargs)
            pruned = attachment.prune(kwargs)
            with running(model, pruned.hook):
                return original(**pruned.forward_inputs)

    return forward


def _prunable(adapter: Adapter, kwargs: Mapping[str, Any]) -> bool:
    """Whether there is a video to prune; a video that cannot be seen is an error."""
    for name in ("inputs_embeds", "mm_encoder_outputs"):
        if kwargs.get(name) is not None:
            raise UnsupportedModelError(
                f"{name} came to an attached model: its video cannot be pruned. Pass input_ids and "
                f"pixel_values_videos as the processor returned them"
            )
    return adapter.has_video(kwargs)


def _split_kwargs(model: Any, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's inputs, and the options of generate."""
    taken = set(inspect.signature(model.forward).parameters) - {"past_key_values", "use_cache"}
    prompt = {k: v for k, v in kwargs.items() if k in taken and k != "logits_to_keep"}
    return prompt, {k: v for k, v in kwargs.items() if k not in prompt}


def _with_original_prompt(out: Any, input_ids: Tensor, pruned: PrunedInputs) -> Any:
    short = pruned.inputs["input_ids"].shape[1]

    def lengthen(sequences: Tensor) -> Tensor:
        copies = sequences.shape[0] // input_ids.shape[0]
        front = input_ids.to(sequences.device).repeat_interleave(copies, dim=0)
        return torch.cat((front, sequences[:, short:]), dim=1)

    if isinstance(out, Tensor):
        return lengthen(out)
    out.sequences = lengthen(out.sequences)
    return out
