"""The tokenizer that a model was stored with, for finding the question."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from cacovid.errors import InvalidInputError


def tokenizer_for(model: nn.Module) -> Any | None:
    """The tokenizer beside the model's weights, or None where there is none.

    Looked for in the directory or in the local Hub cache that the model was loaded from; nothing
    is downloaded.
    """
    name = getattr(model, "name_or_path", "") or ""
    return _load(str(name)) if name else None


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """The tokens that a tokenizer reads as marks and not as text, by id.

    The one for unknown words is none of them: any word may become it.
    """
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    found = {int(number): str(token) for number, token in added.items() if token.special}
    ids = getattr(tokenizer, "all_special_ids", None) or ()
    texts = getattr(tokenizer, "all_special_tokens", None) or ()
    found |= dict(zip(ids, texts, strict=False))
    unknown = getattr(tokenizer, "unk_token_id", None)
    return {number: text for number, text in found.items() if number != unknown}


def refuse_special_tokens(text: str, tokenizer: Any) -> None:
    """Refuses a text in which the tokenizer reads marks: the template's, or placeholders.

    A question with `<|im_end|>` in it would end before its end, and tokens would be chosen by a
    part of it.

    Raises:
        InvalidInputError: naming the token.
    """
    marks = special_tokens(tokenizer)
    for number in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if number in marks:
            raise InvalidInputError(
                f"the question {text!r} holds {marks[number]!r}, which the model's tokenizer reads "
                f"as a special token and not as text; take it out, or write it otherwise"
            )


@lru_cache(maxsize=8)
def _load(name: str) -> Any | None:
    from transformers import AutoTokenizer

    if Path(name).is_dir() and not (Path(name) / "tokenizer_config.json").exists():
        return None
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (ImportError, OSError, ValueError):
        return None
