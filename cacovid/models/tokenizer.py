"""The tokenizer that a model was stored with, for finding the question."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn


def tokenizer_for(model: nn.Module) -> Any | None:
    """The tokenizer beside the model's weights, or None where there is none.

    Looked for in the directory or in the local Hub cache that the model was loaded from; nothing
    is downloaded.
    """
    name = getattr(model, "name_or_path", "") or ""
    return _load(str(name)) if name else None


@lru_cache(maxsize=8)
def _load(name: str) -> Any | None:
    from transformers import AutoTokenizer

    if Path(name).is_dir() and not (Path(name) / "tokenizer_config.json").exists():
        return None
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (ImportError, OSError, ValueError):
        return None
