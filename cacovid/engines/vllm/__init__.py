"""A plugin of vLLM: question-aware pruning of videos in the server and the offline engine.

    vllm serve MODEL --video-pruning-rate 0.9 --hf-overrides '{
        "architectures": ["CaCoVIDQwen3VLForConditionalGeneration"], "cacovid": {"policy": "DIR"}}'

vLLM finds `register` through the entry point group `vllm.general_plugins`. It makes three
architectures known, by name only: without `--hf-overrides` nothing changes, and nothing of this
package's models is imported.

How a request goes: the *processor* (in the API process) cuts the question out of the prompt's ids
and sizes the placeholders by the exact budget; question and retention are among what vLLM hashes
for the video, so that all its caches key on (video, question, retention). The *model* (in every
worker) scores the vision tower's rows against the question and hands over the kept ones. Rows
of the tower are held for the next question on the same video.
"""

from __future__ import annotations

from cacovid.errors import MissingDependencyError

#: Architecture for `--hf-overrides` -> module of `cacovid.engines.vllm.models` with its class.
ARCHITECTURES = {
    "CaCoVIDLlavaOnevisionForConditionalGeneration": "llava_onevision",
    "CaCoVIDQwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "CaCoVIDQwen3VLForConditionalGeneration": "qwen3_vl",
}


def register() -> None:
    """Makes the architectures known to vLLM; may be called again.

    Raises:
        MissingDependencyError: without vLLM.
    """
    try:
        from vllm import ModelRegistry
    except ImportError as error:
        raise MissingDependencyError(
            "this needs vLLM; install it with: pip install cacovid[vllm]"
        ) from error
    for architecture, module in ARCHITECTURES.items():
        # A string: vLLM imports it when a model asks for it, after its devices are set up.
        ModelRegistry.register_model(architecture, f"{__name__}.models.{module}:{architecture}")
