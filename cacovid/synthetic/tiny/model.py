"""The tiny model's shape: a real `LlavaOnevisionForConditionalGeneration`, made from nothing."""

from __future__ import annotations

from typing import Any

import torch

from cacovid.synthetic import world
from cacovid.synthetic.tiny.tokenizer import END, IMAGE, PAD, VIDEO

PATCH = 12
VISION_WIDTH = 128
TEXT_WIDTH = 192
TEXT_LAYERS = 7

#: Decoder layers that start by changing nothing (their output matrices are zero) and are trained
#: in the later stages only: binding is learned sooner by four layers.
LATE_LAYERS = (2, 4, 6)


def build_config(tokenizer: Any) -> Any:
    """The configuration; 36 tokens per frame after the model's own 2 x 2 pooling."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=world.FRAME_SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=512,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO),
        image_grid_pinpoints=[[world.FRAME_SIZE, world.FRAME_SIZE]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )


def build_model(tokenizer: Any, seed: int = 0) -> Any:
    """A model with fresh weights: 1/sqrt(fan-in), so that signals keep their size at this width."""
    from transformers import LlavaOnevisionForConditionalGeneration

    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(build_config(tokenizer))
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            fan_in = module.weight[0].numel()
            torch.nn.init.normal_(module.weight, std=fan_in**-0.5)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    embedding = model.get_input_embeddings().weight
    torch.nn.init.normal_(embedding, std=TEXT_WIDTH**-0.5)
    torch.nn.init.normal_(model.model.image_newline, std=TEXT_WIDTH**-0.5)
    for number in LATE_LAYERS:
        layer = model.model.language_model.layers[number]
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model
