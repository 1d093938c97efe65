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
        session,
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
        SurpriseConfig,
        SurprisePolicy,
        load_policy,
    )
    from cacovid.session import CompressionSession, Pruned, ReadQuestion
    from cacovid.types import Grid, Prompt, Scores, Selection

__all__ = [
    "CacovidError",
    "CompressionSession",
    "CrossAttentionConfig",
    "CrossAttentionPolicy",
    "Grid",
    "InvalidInputError",
    "MissingDependencyError",
    "Prompt",
    "Pruned",
    "PrunedInputs",
    "ReadQuestion",
    "Scores",
    "Selection",
    "SelfAttentionConfig",
    "SelfAttentionPolicy",
    "SurpriseConfig",
    "SurprisePolicy",
    "UnsupportedModelError",
    "VideoQA",
    "VideoReadError",
    "WrongBaseModelError",
    "__version__",
    "attach",
    "errors",
    "load_policy",
    "methods",
    "models",
    "ops",
    "policies",
    "prune_inputs",
    "reference",
    "session",
    "settings",
    "synthetic",
    "types",
    "video",
    "viz",
]

# What each module contributes; a name that is in no row is a module itself.
_FROM = {
    "cacovid.errors": (
        "CacovidError",
        "InvalidInputError",
        "MissingDependencyError",
        "UnsupportedModelError",
        "VideoReadError",
        "WrongBaseModelError",
    ),
    "cacovid.models": (
        "PrunedInputs",
        "VideoQA",
        "attach",
        "prune_inputs",
    ),
    "cacovid.policies": (
        "CrossAttentionConfig",
        "CrossAttentionPolicy",
        "SelfAttentionConfig",
        "SelfAttentionPolicy",
        "SurpriseConfig",
        "SurprisePolicy",
        "load_policy",
    ),
    "cacovid.session": (
        "CompressionSession",
        "Pruned",
        "ReadQuestion",
    ),
    "cacovid.types": (
        "Grid",
        "Prompt",
        "Scores",
        "Selection",
    ),
}
_ORIGIN = {name: module for module, names in _FROM.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cacovid' has no attribute {name!r}")
    if name not in _ORIGIN:
        return importlib.import_module(f"cacovid.{name}")
    value = getattr(importlib.import_module(_ORIGIN[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


_extension.warn_if_absent()
