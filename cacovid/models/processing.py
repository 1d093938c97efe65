"""Text and frames to model inputs, with and without torchvision.

Transformers builds a video processor only where torchvision imports. `load_processor` takes the
`AutoProcessor` there, and elsewhere `VideoProcessor`: the same call, read from the same files, with
the same numbers as the fast (torchvision) processor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cacovid.errors import InvalidInputError, MissingDependencyError, UnsupportedModelError

#: Files that may hold processor settings; a later one fills in what the earlier ones leave open.
_FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")

#: `resample` of the JSON (Pillow's numbers) in torch's words.
_RESAMPLE = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class VideoSettings:
    """What is done to a frame, as the processor's JSON says it.

    Args:
        height: Height of the model's frames in pixels.
        width: Width of the model's frames in pixels.
        mean: Mean per channel, of values in [0, 1].
        std: Standard deviation per channel.
        resample: `"bicubic"`, `"bilinear"` or `"nearest-exact"`.
        rescale: Factor from uint8 to the range of `mean`.
        num_image_tokens: Patches of a frame before the model's 2 x 2 pooling.
    """

    height: int
    width: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: str = "bicubic"
    rescale: float = 1 / 255
    num_image_tokens: int = 729

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a frame after pooling: `ceil(sqrt(num_image_tokens) / 2)^2`."""
        return math.ceil(math.isqrt(self.num_image_tokens) / 2) ** 2

    def resized(self, frames: Tensor, height: int, width: int) -> Tensor:
        """uint8 frames `[F, 3, H, W]` in another size."""
        if tuple(frames.shape[-2:]) == (height, width):
            return frames
        smooth = self.resample != "nearest-exact"
        # In uint8, as torchvision does: torch rounds and clamps inside, with integer weights.
        return functional.interpolate(
            frames, size=(height, width), mode=self.resample,
            antialias=smooth, align_corners=False if smooth else None,
        )  # fmt: skip

    def normalised(self, frames: Tensor) -> Tensor:
        """float32 `[F, 3, H, W]` of uint8 frames: rescaled, by mean and deviation."""
        # One step, with the rescaling inside mean and std, as the fast processor does.
        mean = torch.tensor(self.mean) * (1.0 / self.rescale)
        std = torch.tensor(self.std) * (1.0 / self.rescale)
        return (frames.float() - mean.view(3, 1, 1)) / std.view(3, 1, 1)


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
        return _settings(video, common)

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


def read_settings(
    name: str | PathLike[str], hub: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's settings for videos, and those of its processor as a whole.

    Raises:
        UnsupportedModelError: if there are none.
    """
    found = {file: _read_json(name, file, hub) for file in _FILES}
    common = found["processor_config.json"] or {}
    video = common.get("video_processor") or found["video_preprocessor_config.json"]
    video = video or found["preprocessor_config.json"]
    if not video:
        raise UnsupportedModelError(
            f"{str(name)!r} holds no processor settings; expected processor_config.json with a "
            f"video_processor, or video_preprocessor_config.json"
        )
    # Older files name the processor beside the pixels' settings.
    kind = common.get("processor_class") or video.get("processor_class")
    return video, {**common, "processor_class": kind}


def write_processor(
    folder: str | PathLike[str],
    tokenizer: Any,
    *,
    frame_size: int,
    tokens_per_side: int,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    image_token: str = "<image>",
    video_token: str = "<video>",
) -> None:
    """Writes tokenizer and processor settings as `AutoProcessor` and `load_processor` read them.

    Transformers can write a processor only with torchvision; its file is plain data.

    Args:
        folder: The model's directory.
        tokenizer: Knows both placeholders, has a pad token and pads on the left.
        frame_size: Height and width of the model's frames in pixels.
        tokens_per_side: Patches along a frame's side, before the 2 x 2 pooling.
        mean: Mean per channel.
        std: Standard deviation per channel.
        image_token: Placeholder of an image.
        video_token: Placeholder of a video.

    Raises:
        InvalidInputError: if the tokenizer does not fit.
    """
    _check_tokenizer(tokenizer, image_token, video_token)
    size = {"height": frame_size, "width": frame_size}
    common = {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": list(mean), "image_std": list(std), "resample": 3,
        "rescale_factor": 1 / 255, "size": size,
    }  # fmt: skip
    config = {
        "processor_class": "LlavaOnevisionProcessor",
        "image_token": image_token,
        "video_token": video_token,
        "num_image_tokens": tokens_per_side**2,
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_select_strategy": "full",
        "image_processor": {
            **common,
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "image_grid_pinpoints": [[frame_size, frame_size]],
            "do_pad": True,
        },
        "video_processor": {
            **common,
            "video_processor_type": "LlavaOnevisionVideoProcessor",
            "do_sample_frames": False,
            "return_metadata": False,
        },
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "processor_config.json").write_text(text + "\n")


def _check_tokenizer(tokenizer: Any, *placeholders: str) -> None:
    if tokenizer.pad_token_id is None or tokenizer.padding_side != "left":
        raise InvalidInputError(
            f"the tokenizer has pad token {tokenizer.pad_token!r} and pads on the "
            f"{tokenizer.padding_side}; generation needs a pad token and padding_side='left'"
        )
    for token in placeholders:
        if tokenizer(token, add_special_tokens=False)["input_ids"] != [
            tokenizer.convert_tokens_to_ids(token)
        ]:
            raise InvalidInputError(
                f"the tokenizer cuts {token!r} into pieces; add it as a special token"
            )


def _settings(video: Mapping[str, Any], common: Mapping[str, Any]) -> VideoSettings:
    size = video.get("size") or {}
    if "height" not in size or "width" not in size:
        raise UnsupportedModelError(
            f"the processor resizes to {size}; expected a fixed height and width. Install "
            f"torchvision to use the model's own processor"
        )
    tokens = common.get("num_image_tokens") or video.get("num_image_tokens")
    return VideoSettings(
        height=int(size["height"]),
        width=int(size["width"]),
        num_image_tokens=int(tokens or 729),
        **pixel_settings(video),
    )


def pixel_settings(video: Mapping[str, Any], **defaults: tuple[float, ...]) -> dict[str, Any]:
    """`mean`, `std`, `resample` and `rescale` of a processor's JSON.

    Args:
        video: The JSON.
        **defaults: `mean` and `std` of the family, where the JSON says nothing.

    Raises:
        UnsupportedModelError: for settings that are not done here.
    """
    resample = int(video.get("resample", 3))
    wanted = all(video.get(name, True) for name in ("do_resize", "do_rescale", "do_normalize"))
    if resample not in _RESAMPLE or not wanted:
        raise UnsupportedModelError(
            f"the processor's settings (resample={resample}, steps left out: {not wanted}) are not "
            f"done here. Install torchvision to use the model's own processor"
        )
    half = (0.5, 0.5, 0.5)
    return {
        "mean": tuple(video.get("image_mean") or defaults.get("mean", half)),
        "std": tuple(video.get("image_std") or defaults.get("std", half)),
        "resample": _RESAMPLE[resample],
        "rescale": float(video.get("rescale_factor", 1 / 255)),
    }


def _read_json(
    name: str | PathLike[str], file: str, hub: Mapping[str, Any]
) -> dict[str, Any] | None:
    path = Path(name) / file
    if not Path(name).is_dir():
        try:
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError
        except ImportError as error:
            raise MissingDependencyError(
                f"{str(name)!r} is no directory, and huggingface_hub is not installed"
            ) from error
        try:
            path = Path(hf_hub_download(str(name), file, **hub))
        except EntryNotFoundError:
            return None
    return json.loads(path.read_text()) if path.exists() else None


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
