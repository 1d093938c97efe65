"""Keep the video tokens that contribute to a correct answer to this question.

Public names are imported when they are first used (PEP 562): `import cacovid` takes milliseconds,
needs no GPU, builds nothing and patches nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cacovid import _extension
from cacovid._version import __version__

if TYPE_CHECKING:
    from cacovid import (
        errors,
        methods,
        models,
        ops,
        policies,
        reference,
        settings,
        synthetic,
        types,
        video,
        viz,
    )
    from cacovid.errors import (
        CacovidError,
        InvalidInputError,
        MissingDependencyError,
        UnsupportedModelError,
        VideoReadError,
        WrongBaseModelError,
    )
    from cacovid.models import PrunedInputs, VideoQA, attach, prune_inputs
    from cacovid.policies import (
        CrossAttentionConfig,
        CrossAttentionPolicy,
        SelfAttentionConfig,
        SelfAttentionPolicy,
        load_policy,
    )
    from cacovid.types import Grid, Prompt, Scores, Selection

_MODULES = (
    "errors",
    "methods",
    "models",
    "ops",
    "policies",
    "reference",
    "settings",
    "synthetic",
    "types",
    "video",
    "viz",
)

# Where each public name is defined. The imports above say the same to type checkers.
_NAMES = {
    "CacovidError": "cacovid.errors",
    "InvalidInputError": "cacovid.errors",
    "MissingDependencyError": "cacovid.errors",
    "UnsupportedModelError": "cacovid.errors",
    "VideoReadError": "cacovid.errors",
    "WrongBaseModelError": "cacovid.errors",
    "PrunedInputs": "cacovid.models",
    "VideoQA": "cacovid.models",
    "attach": "cacovid.models",
    "prune_inputs": "cacovid.models",
    "CrossAttentionConfig": "cacovid.policies",
    "CrossAttentionPolicy": "cacovid.policies",
    "SelfAttentionConfig": "cacovid.policies",
    "SelfAttentionPolicy": "cacovid.policies",
    "load_policy": "cacovid.policies",
    "Grid": "cacovid.types",
    "Prompt": "cacovid.types",
    "Scores": "cacovid.types",
    "Selection": "cacovid.types",
}

__all__ = [  # noqa: PLE0604 - the names stand in the two tables above
    "__version__",
    *_MODULES,
    *_NAMES,
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"cacovid.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value  # found without this function from now on
        return value
    raise AttributeError(f"module 'cacovid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


_extension.warn_if_absent()
