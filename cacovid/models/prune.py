"""`prune_inputs`: a model's inputs with only the video tokens that a policy or method keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.methods import LayerHook, Method, score_and_select
from cacovid.models.base import EmbeddedInputs, Positions, QuestionSource, VideoFeatures
from cacovid.models.generation import fixed_settings
from cacovid.models.memory import SelectionMemory
from cacovid.models.registry import adapter_for
from cacovid.models.resolve import resolve_method
from cacovid.models.timing import StageClock
from cacovid.models.tokenizer import refuse_special_tokens, tokenizer_for
from cacovid.types import PerVideo, Prompt, Scores, Selection

#: The stages' names, in order, as `timings` and progress bars have them.
VISION, SELECT = "vision", "score+select"


@dataclass(frozen=True)
class PrunedInputs:
    """Inputs of `model.generate`, shortened, and how they came about: `model.generate(**p.inputs)`.

    Args:
        prepared: What `inputs` is made of.
        selection: The kept tokens of all videos.
        scores: What the method thought of each token; None where it does not score.
        timings: Seconds by stage: `"vision"`, `"score+select"`.
        method: The method's name.
        removed: By how much the rows (`W`) are shorter than those given.
        hook: For a method that prunes inside the language model: what the model has to run with
            (`cacovid.models.running`). `selection` is everything then, as all of it goes in.
        features: The videos' features, for a further question on them.
    """

    prepared: dict[str, Any]
    selection: Selection
    scores: Scores | None
    timings: dict[str, float]
    method: str
    removed: int
    hook: LayerHook | None = None
    features: VideoFeatures | None = None

    def __repr__(self) -> str:
        timings = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in self.timings.items())
        return (
            f"PrunedInputs(inputs={sorted(self.prepared)}, selection={self.selection}, "
            f"method={self.method!r}, removed={self.removed}, seconds: {timings})"
        )

    @property
    def kept(self) -> Selection:
        """`selection`, or the tokens that the last layer ran on where a hook pruned inside.

        Raises:
            InvalidInputError: if the hook did not run yet.
        """
        return self.selection if self.hook is None else self.hook.selection

    @property
    def inputs(self) -> dict[str, Any]:
        """Keyword arguments of `model.generate`, as an adapter's `prune` returns them.

        With transformers before 5.23, `prefill_chunk_size=None` stands beside them. Take them anew
        for each call: `generate` changes `mm_encoder_outputs` that it is given. Of Qwen3-VL with
        transformers before 5.18, `model.generate` runs within `cacovid.models.running(model)`.
        """
        out = dict(self.prepared)
        encoded = out.get("mm_encoder_outputs")
        if encoded is not None:
            out["mm_encoder_outputs"] = {name: copy.copy(one) for name, one in encoded.items()}
        return out

    @property
    def forward_inputs(self) -> dict[str, Any]:
        """The inputs for one plain `model(...)`: `forward` takes ids or embeddings, not both."""
        left_out = set(fixed_settings())
        if "inputs_embeds" in self.prepared:
            left_out.add("input_ids")
        return {name: value for name, value in self.inputs.items() if name not in left_out}

    @property
    def tokens(self) -> dict[str, int]:
        """`{"video": N, "kept": K}` over all videos; `K` of `kept`.

        Where a hook pruned inside the language model, `"layer_average"` is the mean number of video
        tokens that a layer ran on.
        """
        counts = {"video": self.selection.grid.num_tokens, "kept": sum(self.kept.counts)}
        if self.hook is not None:
            counts["layer_average"] = round(self.hook.layer_average * counts["video"])
        return counts


def prune_inputs(
    model: nn.Module,
    inputs: Mapping[str, Any],
    policy_or_method: Any,
    retention: PerVideo,
    *,
    seed: int = 0,
    positions: Positions = "original",
    question: str | Sequence[str] | Tensor | None = None,
    tokenizer: Any = None,
    on_stage: Callable[[str], None] | None = None,
    features: VideoFeatures | None = None,
    memory: SelectionMemory | None = None,
) -> PrunedInputs:
    """Encodes the videos once, selects tokens, and shortens the prompts; patches nothing.

    The result goes to `model.generate(**pruned.inputs)`: greedy, sampled or beam decoding, with
    dynamic or static caches. Keeping everything gives what plain `generate` gives, token for
    token. `max_length` counts the shortened prompt: use `max_new_tokens`. Chunked prefill reads it
    for the Qwen families from transformers 5.23 on, and not else.

    Qwen3-VL with transformers before 5.18 generates within `cacovid.models.running(model)`, which
    puts a hook on the decoder of the instance for the features of inner vision layers; without it
    `generate` fails.

    Args:
        model: A model that has an adapter (`cacovid.models.supported_model_types()`).
        inputs: What its processor returned, on the model's device: one prompt or a padded batch,
            any number of videos per prompt.
        policy_or_method: A policy, a method, a method's name, or a policy's directory or Hub id.
        retention: Share of the video tokens to keep, in (0, 1]; one number, or one per video.
            Exactly `max(1, floor(r*N))` are kept of each video.
        seed: Seed of the methods that draw.
        positions: `"original"`: kept tokens keep their positions. `"compact"`: no gaps.
        question: The question's text as it stands in the prompt (one, or one per prompt), or a
            `[B, W]` bool mask; found from the template's markers when omitted.
        tokenizer: The model's tokenizer; by default the one stored beside its weights.
        on_stage: Called with each stage's name when it begins.
        features: The same videos' features from an earlier call (`PrunedInputs.features`): the
            vision tower does not run, and the inputs need no pixels.
        memory: Tokens of earlier questions on the same videos that stay beside those selected now;
            the new selection goes into it. The prompt then holds more than the retention.

    Raises:
        UnsupportedModelError: if no adapter serves the model, the model is set to prefill in
            chunks, or the method prunes inside the language model.
        WrongBaseModelError: if the policy is for another base model.
        InvalidInputError: for inputs without a video or of a wrong shape, a retention outside
            (0, 1], NaN scores, or a question that is needed and not found, or that holds a special
            token of the tokenizer (found without `question`: one that ends the turn before text).
    """
    method = resolve_method(policy_or_method, model)
    if getattr(method, "inside", False):
        raise UnsupportedModelError(
            f"{method.name} prunes inside the language model, while it runs: no inputs say so. "
            f"Call model.generate within cacovid.attach(model, {method.name!r}, retention), or use "
            f"VideoQA"
        )
    return prepare_inputs(
        model, inputs, method, retention, seed=seed, positions=positions, question=question,
        tokenizer=tokenizer, on_stage=on_stage, features=features, memory=memory,
    )  # fmt: skip


@torch.no_grad()
def prepare_inputs(
    model: nn.Module,
    inputs: Mapping[str, Any],
    method: Method,
    retention: PerVideo,
    *,
    seed: int = 0,
    positions: Positions = "original",
    question: str | Sequence[str] | Tensor | None = None,
    tokenizer: Any = None,
    on_stage: Callable[[str], None] | None = None,
    features: VideoFeatures | None = None,
    memory: SelectionMemory | None = None,
) -> PrunedInputs:
    """As `prune_inputs`, for a caller that runs the model with `PrunedInputs.hook`."""
    adapter = adapter_for(model)
    inside = getattr(method, "inside", False)
    if inside or not adapter.reads_chunks:
        _refuse_chunks(model)
    clock = StageClock(_device(inputs, model), on_stage)
    source = _question_source(model, method, question, tokenizer)

    clock.announce(VISION)
    begin = clock.now()
    embedded: EmbeddedInputs = adapter.embed(
        model, inputs, method.needs, question=source, features=features
    )
    clock.add(VISION, embedded.vision_seconds)
    clock.announce(SELECT)
    hook = None
    if inside:
        hook = cast(Any, method)(embedded.prompt, retention, seed=seed)
        selection, scores = keep_everything(embedded.prompt), None
    else:
        selection, scores = select(method, embedded.prompt, retention, seed=seed)
        if memory is not None:
            selection = memory.merge(selection)
    shortened = adapter.prune(embedded, selection, positions)
    clock.add(SELECT, clock.now() - begin - embedded.vision_seconds)
    return PrunedInputs(
        prepared={**shortened, **fixed_settings()},
        selection=selection,
        scores=scores,
        timings=clock.seconds,
        method=method.name,
        removed=embedded.input_ids.shape[1] - shortened["input_ids"].shape[1],
        hook=hook,
        features=embedded.features,
    )


def select(
    method: Method, prompt: Prompt, retention: PerVideo, *, seed: int = 0
) -> tuple[Selection, Scores | None]:
    """Scores and selects, and refuses what does not hold the exact budget.

    Raises:
        InvalidInputError: for NaN scores, or another number of tokens than the budget.
    """
    prompt.grid.budgets(retention)  # refuses a retention before anything is scored
    selection, scores = score_and_select(method, prompt, retention, seed=seed)
    check_selection(method, prompt, retention, selection, scores)
    return selection, scores


def check_selection(
    method: Method, prompt: Prompt, retention: PerVideo, selection: Selection, scores: Scores | None
) -> None:
    """Refuses scores and selections that nothing may be pruned by.

    Raises:
        InvalidInputError: for NaN scores, or another number of tokens than the budget.
    """
    budgets = prompt.grid.budgets(retention)
    if scores is not None:
        for name, values in (("token", scores.token), ("frame", scores.frame)):
            if values is not None and bool(torch.isnan(values).any()):
                raise InvalidInputError(
                    f"method {method.name!r} gave NaN {name} scores; nothing was pruned. Check "
                    f"the weights and the dtype of policy and model (float16 overflows)"
                )
    if selection.counts != budgets:
        raise InvalidInputError(
            f"method {method.name!r} kept {selection.counts} tokens of the videos; the budget is "
            f"exactly {budgets}"
        )


def keep_everything(prompt: Prompt) -> Selection:
    """The selection of all tokens."""
    grid = prompt.grid
    keep = torch.arange(grid.num_tokens, device=prompt.embeds.device)
    return Selection(keep, grid, grid.tokens_per_video)


def _question_source(
    model: nn.Module, method: Method, question: str | Sequence[str] | Tensor | None, tokenizer: Any
) -> QuestionSource:
    required = method.question_aware
    if isinstance(question, Tensor):
        return QuestionSource(mask=question, required=required)
    if tokenizer is None and (question is not None or required):
        tokenizer = tokenizer_for(model)
    if question is not None and tokenizer is not None:
        for text in (question,) if isinstance(question, str) else question:
            refuse_special_tokens(text, tokenizer)
    return QuestionSource(text=question, tokenizer=tokenizer, required=required)


def _refuse_chunks(model: nn.Module) -> None:
    chunk = getattr(getattr(model, "generation_config", None), "prefill_chunk_size", None)
    if chunk is not None:
        raise UnsupportedModelError(
            f"model.generation_config.prefill_chunk_size is {chunk}; a pruned prompt is read in "
            f"one piece. Set it to None (the prompt is short now)"
        )


def _device(inputs: Mapping[str, Any], model: nn.Module) -> torch.device:
    ids = inputs.get("input_ids")
    return ids.device if isinstance(ids, Tensor) else next(model.parameters()).device
