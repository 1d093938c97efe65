"""What of vLLM's own classes the plugin builds on, and whether the installed release has it.

vLLM promises nothing of it: a release may rename a method, and a sub-class that overrides it would
then silently not be called. So the classes of `cacovid.engines.vllm.models` are only made where
everything here is as it was in the releases that were tested.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter

from cacovid.errors import UnsupportedModelError

#: Releases that the tests ran with.
TESTED = ("0.33",)

_MODELS = "vllm.model_executor.models"
_PROCESSING = "vllm.multimodal.processing"

#: Module and name -> parameters, in order, without `self`.
CONTRACT: dict[tuple[str, str], tuple[str, ...]] = {
    (_PROCESSING, "BaseMultiModalProcessor.apply"): ("inputs", "timing_ctx"),
    (_PROCESSING, "BaseMultiModalProcessor._get_mm_hashes"): ("inputs",),
    (_PROCESSING, "BaseMultiModalProcessor._get_cache_missing_processor_kwargs"): (
        "inputs", "mm_is_cached",
    ),
    (_PROCESSING, "BaseMultiModalProcessor._apply_hf_processor_main"): ("mm_items", "hf_kwargs"),
    (_PROCESSING, "BaseMultiModalProcessor._get_mm_fields_config"): (
        "hf_inputs", "hf_processor_mm_kwargs",
    ),
    (_PROCESSING, "BaseMultiModalProcessor._get_prompt_updates"): (
        "mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs",
    ),
    (_PROCESSING, "ProcessorInputs.get_mm_hashes"): ("model_id", "hash_algorithm"),
    ("vllm.multimodal.inputs", "MultiModalFieldConfig.batched"): ("modality", "keep_on_cpu"),
    (f"{_MODELS}.interfaces", "SupportsMultiModalPruning.recompute_mrope_positions"): (
        "input_ids", "multimodal_embeddings", "mrope_positions", "num_computed_tokens",
    ),
    **{
        (f"{_MODELS}.{module}", f"{name}.{method}"): parameters
        for module, name in (
            ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
            ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
        )
        for method, parameters in (
            ("__init__", ("vllm_config", "prefix")),
            ("embed_multimodal", ("kwargs",)),
            ("_parse_and_validate_video_input", ("kwargs",)),
            ("_process_video_input", ("video_input",)),
            ("_postprocess_image_embeds_evs", ("image_embeds_split", "image_input")),
            ("get_mrope_input_positions", ("input_tokens", "mm_features")),
            (
                "recompute_mrope_positions",
                ("input_ids", "multimodal_embeddings", "mrope_positions", "num_computed_tokens"),
            ),
        )
    },
    (f"{_MODELS}.qwen3_vl", "Qwen3VLForConditionalGeneration._create_final_video_embeddings"): (
        "video_embeddings", "num_tokens_per_frame", "timestamps", "video_grid_thw",
        "retention_mask",
    ),
    (f"{_MODELS}.qwen3_vl", "Qwen3VLForConditionalGeneration._get_expanded_positions"): (
        "device", "seq_len", "video_grid_thw", "num_tokens_per_frame", "timestamps",
        "is_video_embed", "is_vision_start", "retention_mask",
    ),
    (f"{_MODELS}.qwen3_vl", "Qwen3VLMultiModalProcessor.get_video_repl"): (
        "tokens_per_frame", "timestamps", "tokenizer", "vision_start_token_id",
        "vision_end_token_id", "video_token_id", "select_token_id",
    ),
    (f"{_MODELS}.llava_onevision", "LlavaOnevisionForConditionalGeneration.__init__"): (
        "vllm_config", "prefix",
    ),
    **{
        (f"{_MODELS}.llava_onevision", f"LlavaOnevisionForConditionalGeneration.{method}"): (
            parameters
        )
        for method, parameters in (
            ("embed_multimodal", ("kwargs",)),
            ("_parse_and_validate_video_input", ("kwargs",)),
            ("_process_video_pixels", ("inputs",)),
        )
    },
}  # fmt: skip


def broken() -> list[str]:
    """What of the contract the installed vLLM does not keep, a sentence each."""
    out = []
    for (module, name), wanted in CONTRACT.items():
        try:
            method = attrgetter(name)(import_module(module))
        except (ImportError, AttributeError):
            out.append(f"{module} has no {name}")
            continue
        found = tuple(p for p in inspect.signature(method).parameters if p != "self")
        if found != wanted:
            out.append(f"{name} takes {', '.join(found)} in place of {', '.join(wanted)}")
    return out


def check() -> None:
    """Refuses a vLLM that the plugin's classes do not fit.

    Raises:
        UnsupportedModelError: naming what has changed.
    """
    problems = broken()
    if not problems:
        return
    try:
        release = version("vllm")
    except PackageNotFoundError:
        release = "of unknown release"
    raise UnsupportedModelError(
        f"vLLM {release} is not what cacovid's plugin builds on ({'; '.join(problems)}); tested "
        f"are {', '.join(TESTED)}. Install one of these, or a newer cacovid"
    )
