"""What a session refuses, from shapes, dtypes and devices alone: nothing waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError, WrongBaseModelError
from cacovid.types import Grid


def embeds(value: Tensor, name: str, rows: int | None, width: int | None, like: Tensor) -> None:
    """Refuses embeddings that are not `[rows, width]` of the dtype and device of `like`.

    Args:
        value: The embeddings.
        name: For messages.
        rows: Expected number; None: any.
        width: Expected hidden size; None: any.
        like: Sets the dtype, where it is another tensor.

    Raises:
        InvalidInputError: for a wrong shape, dtype or device.
        WrongBaseModelError: for another hidden size.
    """
    require_tensor(value, name)
    if value.dim() != 2 or (rows is not None and value.shape[0] != rows):
        expected = f"[{'L' if rows is None else rows}, {width or 'D'}]"
        raise InvalidInputError(
            f"{name} has shape {tuple(value.shape)}; expected {expected}"
            + ("" if rows is None else ": one row for each token of the session's grid")
        )
    if width is not None and value.shape[1] != width:
        raise WrongBaseModelError(
            f"{name} has hidden size {value.shape[1]}; the policy is for hidden size {width}. Use "
            f"it with its own base model"
        )
    if not value.is_floating_point():
        raise InvalidInputError(f"{name} is {value.dtype}; expected floating point embeddings")
    if value.dtype != like.dtype:
        raise InvalidInputError(
            f"{name} is {value.dtype} and video_embeds {like.dtype}; expected one dtype, as the "
            f"model embeds both"
        )


def require_tensor(value: object, name: str) -> None:
    """Raises:
    InvalidInputError: for what is no tensor.
    """
    if not isinstance(value, Tensor):
        raise InvalidInputError(f"{name} is of the type {type(value).__name__}; expected a tensor")


def same_device(value: Tensor, name: str, device: torch.device) -> None:
    """Raises:
    InvalidInputError: for a tensor that is not on the session's device.
    """
    if value.device != device:
        raise InvalidInputError(
            f"{name} is on {value.device}; the session is on {device}: move it, or make a session "
            f"there"
        )


def positions(value: Tensor, grid: Grid, question: int) -> None:
    """Refuses positions that are neither the video's nor those of video and question.

    Raises:
        InvalidInputError: for a wrong shape or dtype.
    """
    require_tensor(value, "position_ids")
    n = grid.num_tokens
    lengths = (n, n + question)
    axes = value.dim() == 1 or (value.dim() == 2 and value.shape[0] == 3)
    if not axes or value.shape[-1] not in lengths:
        raise InvalidInputError(
            f"position_ids has shape {tuple(value.shape)}; expected [{n}] or [3, {n}] for the "
            f"video's tokens, or {lengths[1]} positions where the question's follow"
        )
    if value.dtype != torch.int64:
        raise InvalidInputError(f"position_ids is {value.dtype}; expected torch.int64")
