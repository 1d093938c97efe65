"""vLLM's processors and models of tiny random checkpoints, on the CPU.

The wheel of vLLM is for CUDA. Beside a torch for the CPU its processors run as they are, and its
models do, too, where no kernel of its own is asked for: the vision towers and everything before the
language model's layers. Linear layers are told to use torch's product, as vLLM itself does on a CPU
for which it has none.
"""

from __future__ import annotations

import socket
from importlib import import_module

import numpy as np
import torch
import vllm.platforms
from vllm.platforms.cpu import CpuPlatform

# Before anything asks for it: there is no device that vLLM would find.
vllm.platforms._current_platform = CpuPlatform()

from vllm import ModelRegistry  # noqa: E402
from vllm.config import DeviceConfig, ModelConfig, VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.multimodal import MULTIMODAL_REGISTRY  # noqa: E402
from vllm.multimodal.inputs import MultiModalFeatureSpec  # noqa: E402
from vllm.multimodal.processing import TimingContext  # noqa: E402
from vllm.multimodal.processing.inputs import ProcessorInputs  # noqa: E402
from vllm.multimodal.utils import group_and_batch_mm_kwargs  # noqa: E402

from cacovid.engines import vllm as plugin  # noqa: E402
from cacovid.engines.vllm.models import request as names  # noqa: E402
from cacovid.models import use_published_names  # noqa: E402
from tests.models.families import FAMILIES, FRAME, IMAGE, VIDEO, make_tokenizer  # noqa: E402

__all__ = [
    "NAMES", "RETENTION", "SIZES", "Engine", "embed", "features_of", "model_class", "names",
]  # fmt: skip

#: Families of the plugin, and the class for each.
NAMES = {module: architecture for architecture, module in plugin.ARCHITECTURES.items()}
MODELS = {family.name: family.make_model for family in FAMILIES}
RATE, RETENTION = 0.7, 0.3


class Engine:
    """A family's checkpoint with vLLM's configuration and processor of it."""

    def __init__(self, name, folder, policy="cdpruner"):
        self.name, self.folder = name, str(folder)
        self.tokenizer = make_tokenizer()
        self.hf = MODELS[name](self.tokenizer)
        self.hf.save_pretrained(folder)
        if name == "llava_onevision":
            use_published_names(folder)
        _hf_processor(name, self.tokenizer).save_pretrained(folder)
        # By the class: vLLM looks into one that is given by name in a process of its own, which
        # has no torchvision.
        ModelRegistry.register_model(NAMES[name], model_class(name))
        self.config = ModelConfig(
            model=self.folder, tokenizer=self.folder, dtype="float32", max_model_len=2048,
            hf_overrides={"architectures": [NAMES[name]], "cacovid": {"policy": policy}},
            # On the device a Triton kernel would do it.
            mm_device_do_normalize=False,
            video_pruning_rate=RATE, limit_mm_per_prompt={"image": 2, "video": 3},
        )  # fmt: skip
        self.processor = MULTIMODAL_REGISTRY.create_processor(self.config)

    def prompt(self, question, videos=1, images=0):
        """Ids with one placeholder for each video and image."""
        if self.name == "llava_onevision":
            shown = " ".join([IMAGE] * images + [VIDEO] * videos)
        else:
            marked = [IMAGE] * images + [VIDEO] * videos
            shown = "".join(f"<|vision_start|>{token}<|vision_end|>" for token in marked)
        text = (
            f"<|im_start|> system you are helpful<|im_end|><|im_start|> user {shown} "
            f"{question}<|im_end|><|im_start|> assistant "
        )
        return self.tokenizer(text)["input_ids"]

    def ask(self, question, clips=(0,), *, images=(), cache=None, prompt=None, **arguments):
        """What the processor makes of a request; `arguments` are for its videos."""
        data = {"video": [clip(number, self.name) for number in clips]}
        if images:
            data["image"] = [picture(number) for number in images]
        inputs = ProcessorInputs(
            prompt or self.prompt(question, len(clips), len(images)),
            self.processor.info.parse_mm_data(data),
            hf_processor_mm_kwargs={"videos_kwargs": arguments} if arguments else {},
            cache=cache,
        )
        return self.processor.apply(inputs, TimingContext(enabled=False))

    def make_model(self):
        """vLLM's model with the checkpoint's weights."""
        from safetensors.torch import load_file
        from vllm.model_executor.model_loader.utils import initialize_model

        config = VllmConfig(model_config=self.config, device_config=DeviceConfig("cpu"))
        with set_current_vllm_config(config):
            _start_group()
            model = initialize_model(vllm_config=config, model_config=self.config)
            self.loaded = model.load_weights(load_file(f"{self.folder}/model.safetensors").items())
        for module in model.modules():
            if hasattr(module, "quant_method") and getattr(module, "weight", None) is not None:
                module.cpu_linear = torch.nn.functional.linear
        return model.eval()


def model_class(name):
    """The plugin's class of a family."""
    return getattr(import_module(f"cacovid.engines.vllm.models.{name}"), NAMES[name])


@torch.inference_mode()
def embed(model, *outputs, modality="video"):
    """What the model makes of the videos (or images) of some requests, as its runner asks."""
    items = [(modality, item) for out in outputs for item in out["mm_kwargs"][modality]]
    rows = []
    for _, count, arguments in group_and_batch_mm_kwargs(items, device="cpu"):
        part = model.embed_multimodal(**arguments)
        assert len(part) == count and all(one.dim() == 2 for one in part)
        rows += part
    return rows


def features_of(out):
    """The features of a request, as its runner knows them."""
    return [
        MultiModalFeatureSpec(data=item, modality=modality, identifier="", mm_position=place)
        for modality, places in out["mm_placeholders"].items()
        for item, place in zip(out["mm_kwargs"][modality], places, strict=True)
    ]


#: Frames, height and width; more frames than a frame is wide in tokens, so that time counts.
SIZES = ((6, 32, 48), (8, 32, 32), (20, 16, 24))


def clip(number, name):
    """A video as vLLM's reader gives it."""
    frames, height, width = SIZES[number]
    if name == "llava_onevision":
        height = width = FRAME
    pixels = np.random.default_rng(number).integers(0, 255, (frames, height, width, 3), np.uint8)
    if name == "llava_onevision":
        return pixels
    return pixels, {
        "fps": 2.0, "duration": frames / 2, "total_num_frames": frames, "video_backend": "opencv",
        "frames_indices": list(range(frames)), "do_sample_frames": False,
    }  # fmt: skip


def picture(number):
    """An image."""
    from PIL import Image

    pixels = np.random.default_rng(100 + number).integers(0, 255, (FRAME, FRAME, 3), np.uint8)
    return Image.fromarray(pixels)


def _hf_processor(name, tokenizer):
    import transformers as hf

    if name == "llava_onevision":
        size = {"height": FRAME, "width": FRAME}
        return hf.LlavaOnevisionProcessor(
            hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[FRAME, FRAME]]),
            tokenizer, hf.LlavaOnevisionVideoProcessor(size=size), num_image_tokens=36,
            vision_feature_select_strategy="full", image_token=IMAGE, video_token=VIDEO,
        )  # fmt: skip
    patches = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    images = hf.Qwen2VLImageProcessor(size={"shortest_edge": 64, "longest_edge": 4096}, **patches)
    size = {"shortest_edge": 64, "longest_edge": 65536}
    if name == "qwen3_vl":
        videos = hf.Qwen3VLVideoProcessor(size=size, min_frames=2, max_frames=32, **patches)
        return hf.Qwen3VLProcessor(images, tokenizer, videos, chat_template="none")
    videos = hf.Qwen2VLVideoProcessor(size=size, min_frames=2, max_frames=32, **patches)
    return hf.Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template="none")


def _start_group():
    """A group of one process, without which vLLM makes no layers."""
    from vllm.distributed import (
        init_distributed_environment,
        initialize_model_parallel,
        model_parallel_is_initialized,
    )

    if model_parallel_is_initialized():
        return
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    init_distributed_environment(1, 0, f"tcp://127.0.0.1:{port}", 0, "gloo")
    initialize_model_parallel(1, 1)
