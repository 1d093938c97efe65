"""Adapters to Hugging Face models: embed a prompt, prune it, generate.

Importing this package does not import transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cacovid.models.attachment import Attachment, attach
    from cacovid.models.attention_scores import received_attention
    from cacovid.models.base import Adapter, EmbeddedInputs, Positions, QuestionSource
    from cacovid.models.conversation import Conversation
    from cacovid.models.inside import running
    from cacovid.models.llava_onevision import LlavaOnevisionAdapter
    from cacovid.models.memory import SelectionMemory
    from cacovid.models.processing import VideoProcessor, load_processor
    from cacovid.models.processor_files import write_processor
    from cacovid.models.prune import PrunedInputs, prune_inputs
    from cacovid.models.registry import adapter_for, register_adapter, supported_model_types
    from cacovid.models.storage import use_published_names
    from cacovid.models.video_qa import Answer, VideoQA

_MODULES = {
    "Adapter": "base",
    "Answer": "video_qa",
    "Attachment": "attachment",
    "Conversation": "conversation",
    "EmbeddedInputs": "base",
    "LlavaOnevisionAdapter": "llava_onevision",
    "Positions": "base",
    "PrunedInputs": "prune",
    "QuestionSource": "base",
    "SelectionMemory": "memory",
    "VideoProcessor": "processing",
    "VideoQA": "video_qa",
    "adapter_for": "registry",
    "attach": "attachment",
    "load_processor": "processing",
    "prune_inputs": "prune",
    "received_attention": "attention_scores",
    "register_adapter": "registry",
    "running": "inside",
    "supported_model_types": "registry",
    "use_published_names": "storage",
    "write_processor": "processor_files",
}

__all__ = [
    "Adapter",
    "Answer",
    "Attachment",
    "Conversation",
    "EmbeddedInputs",
    "LlavaOnevisionAdapter",
    "Positions",
    "PrunedInputs",
    "QuestionSource",
    "SelectionMemory",
    "VideoProcessor",
    "VideoQA",
    "adapter_for",
    "attach",
    "load_processor",
    "prune_inputs",
    "received_attention",
    "register_adapter",
    "running",
    "supported_model_types",
    "use_published_names",
    "write_processor",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
