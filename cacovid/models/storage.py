"""Weights that every supported release of transformers reads, and that are read whole.

Since transformers 5.17 or before, `save_pretrained` names LLaVA-OneVision's vision weights
`vision_tower.encoder…`; the published checkpoints say `vision_tower.vision_model.encoder…`. New
releases read both, old ones (5.4) only the published names: they warn, and go on with a vision
tower of random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from cacovid.errors import CacovidError, InvalidInputError, UnsupportedModelError
from cacovid.files import written_whole
from cacovid.models.defaults import EXPECTED_MODEL

_TOWER, _PUBLISHED = "vision_tower.", "vision_tower.vision_model."


@contextmanager
def telling_what_fails(name: str | PathLike[str]) -> Iterator[None]:
    """Has errors of the libraries that load a model name it, and say what was expected.

    Args:
        name: The model's, as the caller gave it.

    Raises:
        InvalidInputError: for an `OSError` or a `ValueError` that is none of this package's.
    """
    try:
        yield
    except CacovidError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidInputError(
            f"model {str(name)!r} cannot be loaded: {reason[0]} ({EXPECTED_MODEL})"
        ) from error


def use_published_names(folder: str | PathLike[str]) -> int:
    """Renames a saved model's vision weights as the published checkpoints have them.

    Args:
        folder: Where `save_pretrained` put `model.safetensors`, in one file.

    Returns:
        How many weights were renamed; 0 where they had those names.

    Raises:
        InvalidInputError: if there is no `model.safetensors`.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = Path(folder) / "model.safetensors"
    if not path.exists():
        raise InvalidInputError(
            f"{path} is not there; expected a model saved by save_pretrained, in one file"
        )
    with safe_open(str(path), "pt") as stored:
        metadata = stored.metadata()
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    renamed = {_published(name): weight for name, weight in weights.items()}
    changed = len(renamed.keys() - weights.keys())
    if changed:
        with written_whole(path) as part:
            save_file(renamed, part, metadata=metadata)
    return changed


def load_whole(location: str, dtype: Any) -> Any:
    """The model of a directory or Hub id, with none of its weights made up.

    Args:
        location: Directory or Hub id.
        dtype: The weights' dtype.

    Raises:
        UnsupportedModelError: if the installed transformers finds no value for some weights; it
            would only warn and make them up.
    """
    from transformers import AutoModelForImageTextToText, __version__

    model, report = AutoModelForImageTextToText.from_pretrained(
        location, dtype=dtype, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UnsupportedModelError(
            f"{location!r} lacks {len(missing)} weights by the names that transformers "
            f"{__version__} looks for ({missing[0]}, …); it would make them up. Use the release "
            f"that saved them, or rename them: cacovid.models.use_published_names(folder)"
        )
    return model


def _published(name: str) -> str:
    return name if _PUBLISHED in name else name.replace(_TOWER, _PUBLISHED)
