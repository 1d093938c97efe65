"""The files that hold a processor's settings: reading and writing them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from cacovid.errors import InvalidInputError, MissingDependencyError, UnsupportedModelError

#: Files that may hold processor settings; a later one fills in what the earlier ones leave open.
_FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")


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
