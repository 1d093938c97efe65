"""Requests of SGLang's offline engine that hold the kept video tokens only.

The engine takes the output of a processor in place of a video: the embeddings of the tokens and
their positions. So nothing of it is patched and nothing is registered there: `prune_inputs` runs
beside it, with the vision tower of a Hugging Face model, and the engine runs the language model.
Its prefix cache keys on the embeddings, so two questions on one video do not meet in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.models.prune import PrunedInputs

#: Rows of the positions that a Qwen model takes: text, then time, height and width.
_ROWS = 4


def prepare(pruned: PrunedInputs, model: nn.Module) -> dict[str, Any]:
    """What `sglang.Engine.generate` takes for a pruned prompt, beside its sampling parameters.

    Qwen2-VL, Qwen2.5-VL and Qwen3-VL; one prompt, any number of videos, no images.

    Args:
        pruned: What `cacovid.prune_inputs` made of one prompt.
        model: The model that it was made with; the engine has to serve the same weights.

    Returns:
        `input_ids`, a list of `W` integers, and `video_data`, a list of one item with `format`,
        `modality`, `precomputed_embeddings` `[K, D]` (with the deepstack levels behind each other
        `[K, D * (1 + levels)]`), `mrope_positions` `[3, W]` int64 and `mrope_position_delta`
        `[1, 1]` int64: the next token's position less `W`. All tensors are on the CPU.

    Raises:
        UnsupportedModelError: for a model without positions in time, height and width, whose
            processor in the engine takes no embeddings of videos; for images in the prompt.
        InvalidInputError: for several prompts, or a prompt without features of its videos.
    """
    ids, positions = pruned.inputs["input_ids"], pruned.inputs["position_ids"]
    if positions.dim() != 3 or positions.shape[0] != _ROWS:
        raise UnsupportedModelError(
            f"the positions of {type(model).__name__} are {tuple(positions.shape)}; SGLang takes "
            f"embeddings of videos for Qwen2-VL, Qwen2.5-VL and Qwen3-VL ([4, 1, W])"
        )
    if ids.shape[0] != 1:
        raise InvalidInputError(
            f"the pruned inputs hold {ids.shape[0]} prompts; prepare one at a time, and put the "
            f"requests together by cacovid.engines.sglang.together"
        )
    host_ids = ids[0].tolist()
    config: Any = model.config
    if config.image_token_id in host_ids:
        raise UnsupportedModelError(
            "the prompt holds an image beside its videos; SGLang takes embeddings or pixels of "
            "one kind only. Ask without the image"
        )
    rows = _kept_rows(pruned)
    if host_ids.count(config.video_token_id) != rows.shape[0]:
        raise InvalidInputError(
            f"the prompt holds {host_ids.count(config.video_token_id)} video placeholders for "
            f"{rows.shape[0]} kept tokens; pass the model that the inputs were made for"
        )
    grid_positions = positions[1:, 0].cpu()
    after = int(grid_positions.max()) + 1
    return {
        "input_ids": host_ids,
        "video_data": [
            {
                "format": "processor_output",
                "modality": "VIDEO",
                "precomputed_embeddings": rows,
                "mrope_positions": grid_positions,
                "mrope_position_delta": torch.tensor([[after - len(host_ids)]]),
            }
        ],
    }


def together(requests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several requests as one call of `sglang.Engine.generate`.

    Args:
        requests: What `prepare` returned.

    Raises:
        InvalidInputError: for no requests.
    """
    if not requests:
        raise InvalidInputError("there is no request; give at least one")
    return {name: [request[name] for request in requests] for name in requests[0]}


def _kept_rows(pruned: PrunedInputs) -> Tensor:
    features, selection = pruned.features, pruned.selection
    if features is None:
        raise InvalidInputError("the pruned inputs hold no features; use cacovid.prune_inputs")
    rows = features.rows.index_select(0, selection.keep)
    if selection.embeds is not None:
        rows = selection.embeds.to(rows)
    levels = [level.index_select(0, selection.keep) for level in features.deepstack]
    return torch.cat((rows, *levels), dim=-1).detach().cpu()
