"""Text and frames to model inputs, with and without torchvision.

Transformers builds a video processor only where torchvision imports. `load_processor` takes the
`AutoProcessor` there, and elsewhere `VideoProcessor`: the same call, read from the same files, with
the same numbers as the fast (torchvision) processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.models.processor_files import read_settings
from cacovid.models.video_settings import VideoSettings, fixed_size_settings


class VideoProcessor:
    """LLaVA-OneVision's processor for text and videos, without torchvision.

    The call, the placeholders and the pixels are those of transformers' `LlavaOnevisionProcessor`;
    images are not taken.

    Args:
        tokenizer: The model's tokenizer, with a pad token, `padding_side="left"` and the video
            token as a token of its own.
        settings: What is done to frames.
        video_token: The placeholder of a video in a text.
        chat_template: Jinja template; the tokenizer's own when omitted.
    """

    #: `processor_class` of the model's files that it serves for.
    processor_classes: ClassVar[tuple[str, ...]] = ("LlavaOnevisionProcessor",)

    def __init__(
        self,
        tokenizer: Any,
        settings: VideoSettings,
        *,
        video_token: str = "<video>",
        chat_template: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.video_token = video_token
        self.video_token_id = int(tokenizer.convert_tokens_to_ids(video_token))
        self.chat_template = chat_template or getattr(tokenizer, "chat_template", None)

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], **hub: Any) -> VideoProcessor:
        """Reads a model's directory, or its files on the Hub.

        Args:
            name: Directory or Hub id.
            **hub: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            UnsupportedModelError: if there are no processor settings, or they ask for something
                that is not done here.
        """
        from transformers import AutoTokenizer

        video, common = read_settings(name, hub)
        return cls(
            AutoTokenizer.from_pretrained(name, **hub),
            cls.settings_of(video, common),
            video_token=common.get("video_token", "<video>"),
        )

    @classmethod
    def settings_of(cls, video: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
        """The settings that the files give.

        Raises:
            UnsupportedModelError: if they ask for something that is not done here.
        """
        return fixed_size_settings(video, common)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        *,
        return_tensors: str = "pt",
        padding: bool | str = True,
        video_metadata: Any = None,
        **options: Any,
    ) -> Any:
        """Model inputs of one prompt or several.

        Args:
            images: Must be None.
            text: One prompt or several, each with one video token per video.
            videos: One video or several, in the order of the tokens: uint8 `[F, H, W, 3]` or
                `[F, 3, H, W]`, numpy or torch, of any size.
            return_tensors: `"pt"`.
            padding: As the tokenizer takes it.
            video_metadata: A `transformers.video_utils.VideoMetadata` per video, for the families
                that are told when a frame was shown; others do not look at it.
            **options: Further options of the tokenizer (`truncation`, `max_length`).

        Returns:
            A `BatchFeature` with `input_ids`, `attention_mask` and the videos' pixels, as the
            family has them: here `pixel_values_videos` `[V, F, 3, S, S]` float32; a list of
            `[F, 3, S, S]` where the videos differ in length.

        Raises:
            InvalidInputError: for images, frames that are no uint8 RGB, or a number of video
                tokens that is not the number of videos.
        """
        from transformers import BatchFeature

        if images is not None:
            raise InvalidInputError(
                "this processor takes videos only; install torchvision to use the model's own "
                "processor for images"
            )
        if text is None or return_tensors != "pt":
            raise InvalidInputError(
                f"expected text and return_tensors='pt'; got text={text!r}, "
                f"return_tensors={return_tensors!r}"
            )
        texts = [text] if isinstance(text, str) else list(text)
        clips = [_as_frames(video) for video in _as_list(videos)]
        options.pop("do_sample_frames", None)
        told = [None] * len(clips) if video_metadata is None else list(video_metadata)
        if len(told) != len(clips):
            raise InvalidInputError(
                f"video_metadata has {len(told)} entries for {len(clips)} videos; give one each"
            )
        pixels, shown = self.prepare(clips, told)
        encoded = self.tokenizer(
            self._expand(texts, shown), return_tensors="pt", padding=padding, **options
        )
        ids = encoded["input_ids"]
        data = {"input_ids": ids, "attention_mask": encoded["attention_mask"]}
        return BatchFeature({**data, **self.token_types(ids), **(pixels if clips else {})})

    def prepare(
        self, clips: Sequence[Tensor], told: Sequence[Any]
    ) -> tuple[dict[str, Any], list[str]]:
        """The videos' pixels by input name, and what stands for each video in the text.

        Args:
            clips: uint8 `[F, 3, H, W]` each.
            told: A `VideoMetadata` or None each.
        """
        pixels = [self.pixels(clip) for clip in clips]
        same = len({clip.shape[0] for clip in pixels}) == 1
        shown = [self.video_token * self._placeholders(len(clip)) for clip in clips]
        return {"pixel_values_videos": torch.stack(pixels) if same else pixels}, shown

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        """Further inputs of the prompt's shape `[B, W]`."""
        return {}

    def pixels(self, frames: Tensor) -> Tensor:
        """`[F, 3, S, S]` float32 of uint8 frames `[F, 3, H, W]`: resized, rescaled, normalised."""
        return self.settings.normalised(
            self.settings.resized(frames, self.settings.height, self.settings.width)
        )

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """The prompt of a conversation, by the model's chat template.

        Args:
            conversation: Messages as for the model's own processor, or several conversations.
            **options: As for the tokenizer, e.g. `add_generation_prompt=True`.

        Raises:
            InvalidInputError: for `tokenize=True`: this processor reads no video files.
        """
        if options.pop("tokenize", False):
            raise InvalidInputError(
                "tokenize=True is not done here; take the text, and call the processor with "
                "text= and videos="
            )
        options.setdefault("chat_template", self.chat_template)
        return self.tokenizer.apply_chat_template(conversation, tokenize=False, **options)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """As `tokenizer.decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """As `tokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def _expand(self, texts: Sequence[str], shown: Sequence[str]) -> list[str]:
        found = sum(text.count(self.video_token) for text in texts)
        if found != len(shown):
            raise InvalidInputError(
                f"the text holds {found} {self.video_token} tokens for {len(shown)} videos; "
                f"expected one each, in order"
            )
        left = iter(shown)
        out = []
        for text in texts:
            first, *others = text.split(self.video_token)
            out.append(first + "".join(next(left) + part for part in others))
        return out

    def _placeholders(self, frames: int) -> int:
        # One more for the newline embedding that follows a video.
        return frames * self.settings.tokens_per_frame + 1


def load_processor(name: str | PathLike[str], **hub: Any) -> Any:
    """The model's own processor where torchvision imports, else `VideoProcessor`.

    Args:
        name: Directory or Hub id.
        **hub: `revision`, `token`, `cache_dir`, `local_files_only`.
    """
    try:
        import torchvision  # noqa: F401
    except Exception:  # a torchvision built for another torch fails in many ways
        return _own_processor(name, hub)
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(name, **hub)


def _own_processor(name: str | PathLike[str], hub: Mapping[str, Any]) -> Any:
    """The processor without torchvision of the model's family."""
    from cacovid.models.frame_processing import InternVLVideoProcessor, LlavaNextVideoProcessor
    from cacovid.models.qwen_processing import QwenVideoProcessor

    _, common = read_settings(name, hub)
    kind = common.get("processor_class") or "LlavaOnevisionProcessor"
    for own in (
        VideoProcessor, QwenVideoProcessor, LlavaNextVideoProcessor, InternVLVideoProcessor,
    ):  # fmt: skip
        if kind in own.processor_classes:
            return own.from_pretrained(name, **hub)
    raise UnsupportedModelError(
        f"{str(name)!r} has a {kind}, whose work is not done here without torchvision; install "
        f"torchvision to use the model's own processor"
    )


def _as_list(videos: Any) -> list[Any]:
    if videos is None:
        return []
    if isinstance(videos, (np.ndarray, Tensor)) and videos.ndim == 4:
        return [videos]
    flat: list[Any] = []
    for video in videos:
        # One list per prompt is taken too.
        flat.extend(video if isinstance(video, (list, tuple)) else [video])
    return flat


def _as_frames(video: Any) -> Tensor:
    """uint8 `[F, 3, H, W]`."""
    given = getattr(video, "shape", None)
    dtype = getattr(video, "dtype", None)
    frames = torch.from_numpy(video) if isinstance(video, np.ndarray) else video
    if not isinstance(frames, Tensor) or frames.dim() != 4 or frames.dtype != torch.uint8:
        raise InvalidInputError(
            f"a video is {type(video).__name__} of shape {given} and dtype {dtype}; expected uint8 "
            f"frames [F, H, W, 3]"
        )
    if frames.shape[-1] == 3:
        frames = frames.permute(0, 3, 1, 2)
    if frames.shape[1] != 3 or frames.shape[0] == 0:
        raise InvalidInputError(
            f"a video has shape {tuple(given or ())}; expected [F, H, W, 3] with at least one frame"
        )
    return frames
