"""Tiny random models of each family, with the inputs that their processors would make of clips.

Every model is made from its configuration, and its inputs are written down by hand here: ids with
placeholders, pixels as the model takes them. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cacovid.models.generation import release

QUESTIONS = ("what colour is the first thing ?", "which is last ? A . red B . green", "what ?")

WORDS = """
<pad> <unk> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>
user assistant system you are helpful what which colour shape is the moving thing first last red
Frame <img> </img> : - green blue A B C . ? in video and circle square then now count of objects <
> seconds 0 1 2 3 4 5 6 7 8 9
"""
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>", "<img>", "</img>"]  # fmt: skip
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"

#: `(t, h, w)` of the clips in patches, before merging, and of an image.
CLIPS = ((3, 4, 6), (2, 4, 4), (4, 4, 4), (2, 6, 4))
PICTURE = (1, 4, 4)
MERGE = 2

#: Of the families with frames of one size: frames of a clip, pixels along a frame, tokens along a
#: frame after pooling.
LENGTH, FRAME, SIDE = 3, 24, 3

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One prompt: its question, which clips it shows, and whether an image stands before them."""

    question: str
    clips: tuple[int, ...] = (0,)
    image: bool = False


@dataclass(frozen=True)
class Family:
    """How a family's tiny model and its inputs are made."""

    name: str
    make_model: Callable
    make_inputs: Callable
    #: Tokens of each of a request's videos.
    tokens: Callable[[Request], tuple[int, ...]]

    def __repr__(self) -> str:
        return self.name


def make_tokenizer(**names):
    """A tokenizer of whole words, with the template's markers; `names` of tokens go along."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(WORDS.split())}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[<>.:]|[0-9]"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL, padding_side="left",
        **({"extra_special_tokens": names} if names else {}),
    )  # fmt: skip


def _widen(model, tokenizer):
    # Wide weights, so that what the model says hangs on what it sees.
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() > 1:
            torch.nn.init.normal_(weight, std=1.5 * weight[0].numel() ** -0.5)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = None
    return model.eval()


def _ids(tokenizer):
    def number(word):
        return tokenizer.convert_tokens_to_ids(word)

    return {
        "image_token_id": number(IMAGE), "video_token_id": number(VIDEO),
        "vision_start_token_id": number("<|vision_start|>"),
        "vision_end_token_id": number("<|vision_end|>"),
    }  # fmt: skip


def _text(tokenizer, **rope):
    return {
        **TEXT, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **rope},
    }  # fmt: skip


SECTIONS = {"mrope_section": [2, 1, 1]}


def qwen2_vl(tokenizer, seed=0):
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {
        "depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "patch_size": 4,
        "mlp_ratio": 2,
    }  # fmt: skip
    config = Qwen2VLConfig(
        vision_config=vision, text_config=_text(tokenizer, **SECTIONS), **_ids(tokenizer)
    )
    torch.manual_seed(seed)
    return _widen(Qwen2VLForConditionalGeneration(config), tokenizer)


def qwen2_5_vl(tokenizer, seed=1):  # with seed 0 two words are said to be equally likely
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {
        "depth": 2, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
        "intermediate_size": 32, "window_size": 16, "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        vision_config=vision, text_config=_text(tokenizer, **SECTIONS), **_ids(tokenizer)
    )
    torch.manual_seed(seed)
    return _widen(Qwen2_5_VLForConditionalGeneration(config), tokenizer)


def _qwen3_config(kind, tokenizer, **text):
    vision = {
        "depth": 3, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
        "intermediate_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    text = _text(tokenizer, **SECTIONS, mrope_interleaved=True) | {"head_dim": 8} | text
    return kind(vision_config=vision, text_config=text, **_ids(tokenizer))


def qwen3_vl(tokenizer, seed=0):
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = _qwen3_config(Qwen3VLConfig, tokenizer)
    torch.manual_seed(seed)
    return _widen(Qwen3VLForConditionalGeneration(config), tokenizer)


def qwen3_vl_moe(tokenizer, seed=0):
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    config = _qwen3_config(
        Qwen3VLMoeConfig, tokenizer, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    )
    torch.manual_seed(seed)
    return _widen(Qwen3VLMoeForConditionalGeneration(config), tokenizer)


def llava_onevision(tokenizer, seed=0):
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=FRAME, patch_size=4, vision_use_head=False,
    )  # fmt: skip
    ids = _ids(tokenizer)
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=Qwen2Config(**_text(tokenizer)), vision_feature_layer=-1,
        vision_feature_select_strategy="full", image_token_index=ids["image_token_id"],
        video_token_index=ids["video_token_id"], image_grid_pinpoints=[[FRAME, FRAME]],
    )  # fmt: skip
    torch.manual_seed(seed)
    model = _widen(LlavaOnevisionForConditionalGeneration(config), tokenizer)
    torch.nn.init.normal_(model.model.image_newline)
    return model


def llava_next_video(tokenizer, seed=0):
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=FRAME, patch_size=4, projection_dim=16,
    )  # fmt: skip
    ids = _ids(tokenizer)
    config = LlavaNextVideoConfig(
        vision_config=vision, text_config=LlamaConfig(**_text(tokenizer)), vision_feature_layer=-1,
        image_token_index=ids["image_token_id"], video_token_index=ids["video_token_id"],
        image_grid_pinpoints=[[FRAME, FRAME]],
    )  # fmt: skip
    torch.manual_seed(seed)
    return _widen(LlavaNextVideoForConditionalGeneration(config), tokenizer)


def internvl(tokenizer, seed=0):
    from transformers import (
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLVisionConfig,
        Qwen2Config,
    )

    vision = InternVLVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=(FRAME, FRAME), patch_size=(4, 4),
    )  # fmt: skip
    config = InternVLConfig(
        vision_config=vision, text_config=Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids(VIDEO), image_seq_length=SIDE**2,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    return _widen(InternVLForConditionalGeneration(config), tokenizer)


def _qwen_inputs(tokenizer, requests, *, seconds=False, timestamps=False):
    """What a Qwen processor returns for a batch, padded on the left."""
    texts, videos, images = [], [], []
    for request in requests:
        shown = ""
        if request.image:
            images.append(PICTURE)
            shown += f"<|vision_start|>{IMAGE * _merged(PICTURE)}<|vision_end|>"
        for clip in request.clips:
            videos.append(clip)
            shown += _clip_text(CLIPS[clip], timestamps)
        texts.append(_prompt(shown, request.question))
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    ids = batch["input_ids"]
    kinds = (ids == tokenizer.convert_tokens_to_ids(IMAGE)).int()
    inputs = {
        "input_ids": ids,
        "attention_mask": batch["attention_mask"],
        "mm_token_type_ids": kinds + 2 * (ids == tokenizer.convert_tokens_to_ids(VIDEO)).int(),
    }
    width = 3 * 2 * 4 * 4
    if videos:
        pixels = [_pixels(clip, _size(CLIPS[clip]), width) for clip in videos]
        inputs["pixel_values_videos"] = torch.cat(pixels)
        inputs["video_grid_thw"] = torch.tensor([CLIPS[clip] for clip in videos])
        # Old releases use a video's seconds up for an image.
        if seconds and release() >= (5, 17):
            inputs["second_per_grid_ts"] = torch.tensor([0.5 + clip for clip in videos])
    if images:
        inputs["pixel_values"] = torch.cat([_pixels(90, _size(PICTURE), width) for _ in images])
        inputs["image_grid_thw"] = torch.tensor(images)
    return inputs


def _frames(requests):
    """Clips `[F, 3, H, W]` of all requests, in order."""
    return [_pixels(clip, LENGTH, 3, FRAME, FRAME) for r in requests for clip in r.clips]


def _onevision_inputs(tokenizer, requests):
    """The same with a newline after each video."""
    return _llava_inputs(tokenizer, requests, newline=1)


def _llava_inputs(tokenizer, requests, newline=0):
    """What a LLaVA processor returns: placeholders of videos and images, no markers."""
    texts = []
    for request in requests:
        # The whole picture, its one tile, and a line end after each row of that.
        shown = IMAGE * (36 + 36 + 6) if request.image else ""
        shown += " ".join(VIDEO * (LENGTH * SIDE**2 + newline) for _ in request.clips)
        texts.append(_prompt(shown, request.question))
    inputs = dict(tokenizer(texts, return_tensors="pt", padding=True))
    inputs.pop("token_type_ids", None)
    inputs["pixel_values_videos"] = torch.stack(_frames(requests))
    count = sum(request.image for request in requests)
    if count:
        inputs["pixel_values"] = _pixels(90, 1, 2, 3, FRAME, FRAME).expand(count, -1, -1, -1, -1)
        inputs["image_sizes"] = torch.tensor([[FRAME, FRAME]] * count)
    return inputs


def _llava_tokens(request):
    return tuple(LENGTH * SIDE**2 for _ in request.clips)


def _internvl_inputs(tokenizer, requests):
    """What an InternVL processor returns: every frame an image, a video's with numbers."""
    texts, pixels = [], []
    for request in requests:
        picture = f"<img>{VIDEO * SIDE**2}</img>"
        labels = [f"Frame{i + 1}:" for _ in request.clips for i in range(LENGTH)]
        shown = " ".join([picture] * request.image + [f"{label} {picture}" for label in labels])
        texts.append(_prompt(shown, request.question))
        pixels += [_pixels(90, 1, 3, FRAME, FRAME)] * request.image + _frames([request])
    inputs = dict(tokenizer(texts, return_tensors="pt", padding=True))
    inputs.pop("token_type_ids", None)
    inputs["pixel_values"] = torch.cat(pixels)
    return inputs


def _internvl_tokens(request):
    """All of a prompt's pictures are one video."""
    return ((LENGTH * len(request.clips) + request.image) * SIDE**2,)


def _prompt(shown, question):
    return (
        f"<|im_start|> system you are helpful<|im_end|><|im_start|> user {shown}"
        f"{question}<|im_end|><|im_start|> assistant "
    )


def _clip_text(size, timestamps):
    if not timestamps:
        return f"<|vision_start|>{VIDEO * _merged(size)}<|vision_end|>"
    frame = VIDEO * _merged((1, *size[1:]))
    return "".join(
        f"<{i + 0.5:.1f} seconds><|vision_start|>{frame}<|vision_end|>" for i in range(size[0])
    )


def _size(size):
    return size[0] * size[1] * size[2]


def _merged(size):
    return _size(size) // MERGE**2


def _pixels(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _qwen(name, make_model, **how):
    def make_inputs(tokenizer, requests: Sequence[Request]):
        return _qwen_inputs(tokenizer, requests, **how)

    def tokens(request):
        return tuple(_merged(CLIPS[clip]) for clip in request.clips)

    return Family(name, make_model, make_inputs, tokens)


FAMILIES = (
    _qwen("qwen2_vl", qwen2_vl),
    _qwen("qwen2_5_vl", qwen2_5_vl, seconds=True),
    _qwen("qwen3_vl", qwen3_vl, timestamps=True),
    Family("llava_onevision", llava_onevision, _onevision_inputs, _llava_tokens),
    Family("llava_next_video", llava_next_video, _llava_inputs, _llava_tokens),
    Family("internvl", internvl, _internvl_inputs, _internvl_tokens),
)

#: Of the same adapter as one above; what differs is the decoder.
VARIANTS = (_qwen("qwen3_vl_moe", qwen3_vl_moe, timestamps=True),)
