"""A question on a video as a model's inputs: the user's turn, and the processor's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


def chat_prompt(processor: Any, text: str) -> str:
    """The prompt of one user turn, the video before the text, ready for the answer.

    Args:
        processor: The model's.
        text: What the user says, without the video.
    """
    content = [{"type": "video"}, {"type": "text", "text": text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )


def video_inputs(
    model: Any,
    processor: Any,
    frames: np.ndarray,
    text: str,
    prompt: str | None = None,
    told: Any = None,
) -> dict[str, Any]:
    """Inputs of a question on a video, on the model's device.

    Args:
        model: The model; pixels take its dtype.
        processor: Its processor.
        frames: `[F, H, W, 3]` uint8.
        text: What the user says.
        prompt: The whole prompt, where it is not `chat_prompt` of the text.
        told: `VideoFrames.hf()` of the frames, for the families that are told when a frame was
            shown.

    Returns:
        `input_ids` and `attention_mask` `[1, W]`, the pixels, and what else the processor gives.
    """
    prompt = chat_prompt(processor, text) if prompt is None else prompt
    batch = processor(
        text=[prompt], videos=[frames], return_tensors="pt", padding=True,
        # The frames are chosen: a processor must not choose among them once more.
        do_sample_frames=False, **({} if told is None else {"video_metadata": [told]}),
    )  # fmt: skip
    return {name: _placed(model, name, value) for name, value in batch.items()}


def _placed(model: Any, name: str, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(model.device, model.dtype if name.startswith("pixel_values") else value.dtype)
