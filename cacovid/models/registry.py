"""Which adapter serves which model: by `config.model_type`, never by class or name."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from cacovid.errors import UnsupportedModelError
from cacovid.models.base import Adapter

_ADAPTERS: dict[str, Adapter] = {}


def register_adapter(adapter: Adapter) -> Adapter:
    """Makes an adapter known for its `model_types`; the last one registered wins.

    Args:
        adapter: An object that fulfils `cacovid.models.base.Adapter`.

    Returns:
        The adapter itself.
    """
    for model_type in adapter.model_types:
        _ADAPTERS[model_type] = adapter
    return adapter


def supported_model_types() -> tuple[str, ...]:
    """The `config.model_type` values that have an adapter, sorted."""
    _load_built_in()
    return tuple(sorted(_ADAPTERS))


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter for a Hugging Face model.

    Raises:
        UnsupportedModelError: if the model has no `config.model_type`, or no adapter serves it.
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no config.model_type; expected a Hugging Face model. "
            f"Pass the model itself, not a wrapper around it"
        )
    _load_built_in()
    adapter = _ADAPTERS.get(model_type)
    if adapter is None:
        raise UnsupportedModelError(
            f"no adapter for model type {model_type!r} ({type(model).__name__}); supported: "
            f"{', '.join(sorted(_ADAPTERS))}. Register one with "
            f"cacovid.models.register_adapter, or call the methods on a cacovid.Prompt of your own"
        )
    return adapter


def _load_built_in() -> None:
    while _BUILT_IN:
        module, name = _BUILT_IN.pop()
        adapter: Adapter = getattr(import_module(f"cacovid.models.{module}"), name)()
        # An adapter that the caller registered before stays.
        for model_type in adapter.model_types:
            _ADAPTERS.setdefault(model_type, adapter)


#: Module and class of the adapters that come with the package.
_BUILT_IN = [
    ("llava_onevision", "LlavaOnevisionAdapter"),
    ("llava_next_video", "LlavaNextVideoAdapter"),
    ("qwen_vl", "QwenVLAdapter"),
    ("internvl", "InternVLAdapter"),
]
