"""What a model adapter has to offer, and what it hands over.

An adapter knows one family of models: how its processor's inputs become one embedded prompt, and
how a prompt with fewer video tokens is written down so that `model.generate` reads it. Everything
between the two (scores, selection) is the same for all models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from cacovid.types import Grid, Prompt, Selection

#: `"original"`: kept tokens keep their position ids, and decoding goes on from the uncompressed
#: prompt's next position. `"compact"`: positions without gaps.
Positions: TypeAlias = Literal["original", "compact"]


@dataclass(frozen=True)
class QuestionSource:
    """Where the question's tokens are to be found; see `cacovid.models.question`.

    Args:
        text: The question as it stands in the user turn, with its options; one for all prompts,
            or one per prompt.
        mask: `[B, S]` bool, True where a token belongs to the question; goes before `text`.
        tokenizer: The model's tokenizer; needed with `text`.
        required: Whether a prompt without a question is an error.
    """

    text: str | Sequence[str] | None = None
    mask: Tensor | None = None
    tokenizer: Any = None
    required: bool = False


@dataclass(frozen=True)
class VideoFeatures:
    """What the vision tower and projector made of some videos.

    Args:
        rows: `[R, D]`: what takes the place of the placeholders, video after video; separators
            such as LLaVA-OneVision's newline are among them.
        grid: The videos' grids, without separators.
        extras: What methods ask of the vision tower, by the names of `Prompt.extras`: one row per
            video token, without separators.
        deepstack: `[R, D]` for each of the decoder's first layers: what is added to the hidden
            states behind it (Qwen3-VL).
        seconds: `[V]` seconds between a video's frames, where positions are counted with them
            (Qwen2.5-VL).
    """

    rows: Tensor
    grid: Grid
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    deepstack: tuple[Tensor, ...] = ()
    seconds: Tensor | None = None


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision tower and projector made of the images beside the videos.

    Args:
        rows: `[R, D]`: what takes the place of the image placeholders.
        deepstack: As in `VideoFeatures`.
    """

    rows: Tensor
    deepstack: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class EmbeddedInputs:
    """A batch of embedded prompts and what is needed to write it down again, shortened.

    Dimensions: `B` prompts of up to `W` tokens, `S` tokens without padding, `N` video tokens.

    Args:
        prompt: The prompts, packed one after another without padding.
        inputs: The inputs as they were given.
        input_ids: `[B, W]` int64, as given.
        source: `[S]` int64: each packed token's place in `input_ids.flatten()`.
        row_lengths: Tokens of each prompt (host integers).
        video_rows: The prompt that each video belongs to (host integers).
        other_index: `[S - N]` int64, ascending: packed tokens that are always kept (text, images
            and separators such as LLaVA-OneVision's newline).
        pad_id: What `input_ids` is padded with.
        vision_seconds: Time spent in the vision tower.
        features: The videos' features; with them `embed` answers a further question on the same
            videos without the vision tower.
        image_index: `[M]` int64: packed places of the image tokens; None without images.
        image_counts: Image tokens of each prompt (host integers).
    """

    prompt: Prompt
    inputs: Mapping[str, Any]
    input_ids: Tensor
    source: Tensor
    row_lengths: tuple[int, ...]
    video_rows: tuple[int, ...]
    other_index: Tensor
    pad_id: int
    vision_seconds: float = 0.0
    features: VideoFeatures | None = None
    image_index: Tensor | None = None
    image_counts: tuple[int, ...] = ()

    @property
    def batch_size(self) -> int:
        """`B`, the prompts in the batch."""
        return len(self.row_lengths)


@runtime_checkable
class Adapter(Protocol):
    """One family of models; see `cacovid.models.registry.register_adapter`."""

    #: Values of `config.model_type` that the adapter takes.
    model_types: tuple[str, ...]

    def embed(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        needs: Collection[str] = (),
        *,
        question: QuestionSource | None = None,
        features: VideoFeatures | None = None,
    ) -> EmbeddedInputs:
        """Runs the vision tower once and embeds the prompts.

        Args:
            model: The Hugging Face model.
            inputs: What its processor returned.
            needs: Names of `Prompt.extras` to fill in.
            question: Where to find the question tokens.
            features: The videos' features from an earlier call; the vision tower does not run.
        """
        ...

    def prune(
        self, embedded: EmbeddedInputs, selection: Selection, positions: Positions = "original"
    ) -> dict[str, Any]:
        """Keyword arguments of `model.generate` for the prompts with the kept video tokens only."""
        ...

    def has_video(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the inputs hold pixels of a video."""
        ...

    def inner_model(self, model: nn.Module) -> Any:
        """The module whose `forward` merges features into the prompt (without the LM head)."""
        ...

    def text_model(self, model: nn.Module) -> Any:
        """The decoder: has `.layers` and takes `inputs_embeds`."""
        ...

    def text_inputs(self, prompt: Prompt, begin: int, end: int) -> dict[str, Any]:
        """What the decoder takes for packed tokens beside embeddings, mask and positions."""
        ...

    @property
    def hands_over_features(self) -> bool:
        """Whether `prune` leaves it to the model to put features into its layers."""
        ...

    @property
    def reads_chunks(self) -> bool:
        """Whether `generate` may prefill what `prune` returned in chunks."""
        ...
