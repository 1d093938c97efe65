"""How a question travels from the processor to the model: the names of arguments and fields.

As *arguments* (below `videos_kwargs`) question, retention and policy are part of what vLLM hashes
for a video, and never reach the Hugging Face processor. As *fields* they go with the pixels to the
workers, one entry per video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFieldConfig

from cacovid.engines.vllm.question import TextTokens
from cacovid.errors import InvalidInputError

#: The scope of arguments that vLLM hashes for videos alone.
SCOPE = "videos_kwargs"
PREFIX = "cacovid_"

#: What a request may say: the question's text as it stands in the prompt, and the share to keep.
QUESTION, RETENTION = "cacovid_question", "cacovid_retention"
#: What the processor adds.
QUERY_IDS, QUERY_PLACES = "cacovid_query_ids", "cacovid_query_places"
QUERY_ASKING, POLICY = "cacovid_query_asking", "cacovid_policy"
#: One key for each video, of the video alone; not hashed.
VIDEO_KEYS = "cacovid_video_keys"

#: Fields: `[3, L]` int64 (ids, places, whether it asks), a float64, and `[32]` uint8 per video.
TEXT, SHARE, KEY = "cacovid_text", "cacovid_share", "cacovid_key"
FIELDS = (TEXT, SHARE, KEY)

_VIDEOS = {"pixel_values_videos", "video_embeds"}


def split_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Hugging Face processor's arguments and ours, which stand in the scope or beside it."""
    theirs = {name: value for name, value in arguments.items() if not name.startswith(PREFIX)}
    ours = {name: value for name, value in arguments.items() if name.startswith(PREFIX)}
    scope = arguments.get(SCOPE)
    if isinstance(scope, Mapping):
        ours |= {name: value for name, value in scope.items() if name.startswith(PREFIX)}
        rest = {name: value for name, value in scope.items() if not name.startswith(PREFIX)}
        theirs[SCOPE] = rest
        if not rest:
            del theirs[SCOPE]  # an empty scope would be hashed
    return theirs, ours


def join_arguments(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Both together again, ours in the scope."""
    return {**theirs, SCOPE: {**(theirs.get(SCOPE) or {}), **ours}}


def query_arguments(text: TextTokens, retention: float, policy: str) -> dict[str, Any]:
    """What is hashed of a question."""
    return {
        QUERY_IDS: list(text.ids), QUERY_PLACES: list(text.places),
        QUERY_ASKING: [int(asks) for asks in text.asking],
        RETENTION: retention, POLICY: policy,
    }  # fmt: skip


def query_fields(ours: Mapping[str, Any], videos: int) -> dict[str, Any]:
    """The fields of some videos."""
    rows = [ours[QUERY_IDS], ours[QUERY_PLACES], ours[QUERY_ASKING]]
    text = torch.tensor(rows, dtype=torch.int64).reshape(3, -1)
    keys = [torch.frombuffer(bytearray(key), dtype=torch.uint8) for key in ours[VIDEO_KEYS]]
    return {
        TEXT: [text] * videos,
        SHARE: torch.full((videos,), ours[RETENTION], dtype=torch.float64),
        KEY: torch.stack(keys),
    }


def field_configs() -> dict[str, MultiModalFieldConfig]:
    """How vLLM splits and batches the fields; they stay on the host."""
    return {name: MultiModalFieldConfig.batched("video", keep_on_cpu=True) for name in FIELDS}


@dataclass(frozen=True)
class Asked:
    """What is asked of one video.

    Args:
        text: `[3, L]` int64 on the host: ids, places, whether it belongs to the question.
        retention: Share to keep.
        key: Of the video.
    """

    text: Tensor
    retention: float
    key: bytes


def take_asked(arguments: dict[str, Any]) -> list[Asked]:
    """Takes the fields out of a model's arguments; one entry per video, none for images.

    Raises:
        InvalidInputError: for videos that come without the question.
    """
    fields: list[Sequence[Tensor]] = [arguments.pop(name, ()) for name in FIELDS]
    if not len(fields[0]) and not _VIDEOS.isdisjoint(arguments):
        raise InvalidInputError(
            f"the model was given a video without {', '.join(FIELDS)}; have the request processed "
            f"by a vLLM that runs the same architecture"
        )
    return [
        Asked(text.cpu(), float(share), bytes(key.cpu().numpy()))
        for text, share, key in zip(*fields, strict=True)
    ]
