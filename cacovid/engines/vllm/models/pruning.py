"""What is added to vLLM's models: features held, tokens chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cacovid.engines.vllm.feature_cache import FeatureCache
from cacovid.engines.vllm.models.request import Asked
from cacovid.engines.vllm.pruner import VideoPruner
from cacovid.engines.vllm.settings import PluginSettings, default_retention
from cacovid.types import Grid, Selection

if TYPE_CHECKING:
    from typing import Any as Base  # a model of vLLM, which stands behind it among the bases
else:
    Base = object


class PruningModel(Base):
    """Goes before one of vLLM's models among the bases of a class.

    The policy is no sub-module: the checkpoint does not hold its weights, and vLLM must not look
    for them.
    """

    def start_pruning(self, vllm_config: Any) -> None:
        """Loads the policy; for the end of a model's constructor.

        Raises:
            InvalidInputError: for settings that cannot be, see `PluginSettings`.
            WrongBaseModelError: for a policy of another model.
        """
        model_config = vllm_config.model_config
        default_retention(model_config.get_multimodal_config())
        config = model_config.hf_config
        settings = PluginSettings.of(config, model_config.model)
        width = config.get_text_config().hidden_size
        with _plain_tensors():
            method = settings.load(width, model_config.model)
        self._pruner = VideoPruner(method, settings.seed)
        self._features = FeatureCache(int(settings.feature_cache_gb * 2**30))

    @property
    def reads_prompt(self) -> bool:
        """Whether the policy reads the text around the question."""
        return bool(getattr(getattr(self._pruner.method, "policy", None), "reads_prompt", False))

    def held_features(
        self,
        keys: Sequence[bytes],
        device: torch.device,
        compute: Callable[[list[int]], list[Tensor]],
    ) -> list[Tensor]:
        """The vision tower's rows of some videos, computed for those that are not held.

        Args:
            keys: One per video; a key that stands twice is computed once.
            device: Where the rows are wanted.
            compute: Gives the rows of the videos with these numbers.

        Returns:
            `[R, C]` for each video.
        """
        # In the order of the keys, in which every worker has them: a set's order differs between
        # processes, and with it what is forgotten first.
        found: dict[bytes, Tensor] = {}
        for key in dict.fromkeys(keys):
            if (rows := self._features.get(key, device)) is not None:
                found[key] = rows
        missing = [n for n, key in enumerate(keys) if key not in found and key not in keys[:n]]
        if missing:
            for number, rows in zip(missing, compute(missing), strict=True):
                found[keys[number]] = rows
                self._features.put(keys[number], rows)
        return [found[key] for key in keys]

    def choose(
        self,
        rows: Tensor,
        positions: Tensor,
        extent: int,
        size: tuple[int, int, int],
        asked: Asked,
        separators: Tensor | None = None,
        inside: tuple[Tensor, Tensor] | None = None,
    ) -> Selection:
        """The kept tokens of one video.

        Args:
            rows: `[N, D]`.
            positions: `[N]` or `[3, N]` on the host, from the video's beginning.
            extent: Positions from there to the text behind it.
            size: `(t, h, w)` after merging.
            asked: The question.
            separators: Rows right behind the video.
            inside: Ids `[M]` and positions `[3, M]` of text between frames, for policies that read
                the whole prompt.
        """
        from vllm.utils.gpu_sync_debug import gpu_sync_allowed

        ids, places, asking = asked.text
        after = torch.where(places > 0, extent + places - 1, places)
        after = after.expand(*positions.shape[:-1], -1)
        if inside is not None and self.reads_prompt:
            # Behind the rest: such policies have no order but that of the positions.
            ids, after = torch.cat((ids, inside[0])), torch.cat((after, inside[1]), dim=1)
            asking = torch.cat((asking, torch.zeros_like(inside[0])))
        text = rows[:0]
        if ids.numel():
            # Split over workers, who talk: each of them comes here with the same ids.
            text = self.get_language_model().embed_input_ids(ids.to(rows.device))
        with gpu_sync_allowed():  # the check for NaN scores
            return self._pruner.choose(
                rows, positions, Grid([size]), asked.retention, text,
                after, asking.bool(), separators,
            )  # fmt: skip


def kept_rows(rows: Tensor, selection: Selection, width: int) -> Tensor:
    """The rows `[K, C]` of the kept tokens, merged ones where the method merges.

    Args:
        rows: `[N, C]`, further levels behind the first `width` columns.
        selection: The kept tokens.
        width: `D`.
    """
    kept = rows.index_select(0, selection.keep)
    if selection.embeds is None:
        return kept
    return torch.cat((selection.embeds.to(kept), kept[:, width:]), dim=1)


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """New tensors in float32 on the CPU, whatever vLLM has set for the model that it is making."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)
