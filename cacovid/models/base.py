"""What a model adapter has to offer, and what it hands over.

An adapter knows one family of models: how its processor's inputs become one embedded prompt, and
how a prompt with fewer video tokens is put back so that `model.generate` reads it. Everything
between the two (scores, selection) is the same for all models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from cacovid.types import Prompt, Selection

#: `"original"`: kept tokens keep their position ids and decoding goes on from the uncompressed
#: prompt's next position. `"compact"`: positions without gaps.
Positions: TypeAlias = Literal["original", "compact"]

#: The question's text, one for all prompts or one per prompt.
Question: TypeAlias = str | Sequence[str] | None


@dataclass(frozen=True)
class QuestionSource:
    """Where the question tokens are to be found; see `cacovid.models.question`.

    Args:
        text: The question as it stands in the user turn, with its options; one, or one per prompt.
        mask: `[B, S]` bool, True where a token belongs to the question; goes before `text`.
        tokenizer: The model's tokenizer; needed with `text`.
    """

    text: Question = None
    mask: Tensor | None = None
    tokenizer: Any = None


@dataclass(frozen=True)
class EmbeddedInputs:
    """A batch of embedded prompts and what is needed to write it down again, shortened.

    Args:
        prompt: The prompts, packed one after another without padding.
        inputs: The inputs as they were given.
        source: `[S]` int64: each packed token's place in `input_ids.flatten()`.
        row_lengths: Tokens of each prompt (host integers).
        video_rows: The prompt that each video belongs to (host integers).
        other_index: `[S - N]` int64, ascending: packed tokens that are not video tokens and are
            always kept (text and separators).
        separator_index: packed tokens that the model fills from its vision side although they are
            no video tokens (LLaVA-OneVision's newline), ascending.
        pad_id: What to pad `input_ids` with.
        vision_seconds: Time spent in the vision tower.
    """

    prompt: Prompt
    inputs: Mapping[str, Any]
    source: Tensor
    row_lengths: tuple[int, ...]
    video_rows: tuple[int, ...]
    other_index: Tensor
    separator_index: Tensor
    pad_id: int
    vision_seconds: float = 0.0
    generate_inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Prompts in the batch."""
        return len(self.row_lengths)


@dataclass(frozen=True)
class ShortPrompts:
    """Prompts with fewer video tokens, as rows again, padded on the left.

    Dimensions: `B` prompts, `S'` tokens of the longest one.

    Args:
        input_ids: `[B, S']` int64.
        attention_mask: `[B, S']` int64.
        position_ids: `[B, S']` int64.
        embeds: `[B, S', D]`.
        features: Kept rows of every video with its separator, in order `[rows, D]`.
        feature_lengths: Rows of each video in `features`.
        extra: Other inputs of the prompt's length (labels, token types), shortened alike.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    embeds: Tensor
    features: Tensor
    feature_lengths: tuple[int, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Adapter(Protocol):
    """One family of models; see `cacovid.models.registry.register_adapter`."""

    #: Values of `config.model_type` that the adapter takes.
    model_types: tuple[str, ...]

    def embed(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        needs: Sequence[str] | frozenset[str] = (),
        *,
        question: QuestionSource | None = None,
    ) -> EmbeddedInputs:
        """Runs the vision tower once and embeds the prompts.

        Args:
            model: The Hugging Face model.
            inputs: What its processor returned.
            needs: Names of `Prompt.extras` to fill in.
            question: Where to find the question tokens.
        """
        ...

    def shorten(
        self, embedded: EmbeddedInputs, selection: Selection, positions: Positions = "original"
    ) -> ShortPrompts:
        """The prompts without the video tokens that are not kept."""
        ...

    def generate_inputs(self, model: nn.Module, short: ShortPrompts) -> dict[str, Any]:
        """Fresh keyword arguments for `model.generate`."""
        ...

    def layer_inputs(self, model: nn.Module, prompt: Prompt, layer: int) -> Tensor:
        """`[S, D]`: the packed prompts' hidden states on entering a layer of the LLM."""
        ...

    def inner_model(self, model: nn.Module) -> nn.Module:
        """The module whose `forward` merges features into the prompt (without the LM head)."""
        ...

    def text_model(self, model: nn.Module) -> nn.Module:
        """The decoder: has `.layers` and takes `inputs_embeds`."""
        ...
