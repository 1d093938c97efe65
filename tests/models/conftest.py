"""A tiny random LLaVA-OneVision with its tokenizer and processor, the same in every test."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

FRAME = 24
PATCH = 4
TOKENS_PER_FRAME = 9  # 24 / 4 = 6 patches a side, 3 after pooling

VOCABULARY = """
<pad> <unk> <|im_start|> <|im_end|> <image> <video> user assistant system you are helpful
what which colour shape is the moving thing first last red green blue A B C . ? in video and
circle square then now count of objects
"""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }}\n"
    "{% for p in m['content'] %}{% if p['type'] == 'video' %}<video>\n{% endif %}{% endfor %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant\n{% endif %}"
)


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(VOCABULARY.split())}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<image>", "<video>"],
        padding_side="left",
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer, hidden=32, seed=0):
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=FRAME, patch_size=PATCH, vision_use_head=False,
    )  # fmt: skip
    text = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        bos_token_id=None, pad_token_id=tokenizer.pad_token_id, eos_token_id=None,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[FRAME, FRAME]], vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config)
    # Wide weights, so that what the model says hangs on what it sees.
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)):
            torch.nn.init.normal_(module.weight, std=1.5 * module.weight[0].numel() ** -0.5)
    torch.nn.init.normal_(model.model.image_newline)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = None
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def processor(tokenizer):
    from cacovid.models.processing import VideoProcessor
    from cacovid.models.video_settings import VideoSettings

    settings = VideoSettings(height=FRAME, width=FRAME, num_image_tokens=(FRAME // PATCH) ** 2)
    return VideoProcessor(tokenizer, settings)


@pytest.fixture(scope="session")
def session_model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture
def model(session_model):
    """The shared model; a test that leaves a trace on it fails here."""
    before = dict(vars(session_model))
    yield session_model
    # transformers keeps the last static cache, or its length
    for name in ("_previous_max_cache_length", "_cache"):
        vars(session_model).pop(name, None)
    assert vars(session_model) == before


def clip(seed, frames=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (frames, FRAME, FRAME, 3), dtype=np.uint8)


def user(text, videos=1):
    content = [{"type": "video"}] * videos + [{"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def ask(processor, questions, clips, videos=None):
    """Inputs of a batch: one question per prompt, `videos[i]` videos in prompt `i`."""
    videos = videos or [1] * len(questions)
    prompts = [
        processor.apply_chat_template(user(q, n), add_generation_prompt=True)
        for q, n in zip(questions, videos, strict=True)
    ]
    return processor(text=prompts, videos=clips)


class HandPicked:
    """A method that keeps given tokens: what is tested is the way around it."""

    name = "hand-picked"
    question_aware = False
    needs = frozenset()

    def __init__(self, keep, counts, embeds=None):
        self.keep = torch.as_tensor(keep)
        self.counts = tuple(counts)
        self.embeds = embeds

    def __call__(self, prompt, retention, *, seed=0):
        from cacovid.types import Selection

        return Selection(self.keep, prompt.grid, self.counts, self.embeds)

    def scores(self, prompt, *, seed=0):
        return None


@pytest.fixture(scope="session")
def lab():
    """What tests make models and inputs with."""
    return SimpleNamespace(
        HandPicked=HandPicked, TOKENS_PER_FRAME=TOKENS_PER_FRAME, ask=ask, clip=clip,
        make_model=make_model, make_tokenizer=make_tokenizer, user=user,
    )  # fmt: skip
