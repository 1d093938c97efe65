"""Tiny Qwen2.5-VL and Qwen3-VL checkpoints whose decoders are trained on `recall_task`.

Vision towers and word embeddings are hand-made, the same for all: a pair's token is a code of its
left colour beside one of its right colour, a colour's word its code in the first half; nothing
passes between tokens, and no place is told. The towers are the families' own, with random weights
but for the last matrix, which is fitted. So language models of one width can be told apart from
the features that they read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from recall_task import (
    COLOURS,
    FPS,
    GREYS,
    HELD,
    NAMES,
    PAIRS,
    PICTURES,
    SHOWN,
    draw_clips,
    question,
    render,
)
from torch import Tensor

from cacovid.models import adapter_for, deepstack
from cacovid.models.inputs import video_inputs
from cacovid.models.processing import load_processor
from cacovid.train.data import TrainingSample
from cacovid.train.wording import word_problem

WIDTH = 64
VIDEO, IMAGE = "<|video_pad|>", "<|image_pad|>"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE, VIDEO]
WORDS = ["<pad>", "<unk>", *SPECIAL, "user", "assistant", "beside", *COLOURS, *"0123456789.<>",
         "seconds", "Reply", "with", "nothing", "but", "the", "answer"]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {% for p in m['content'] %}"
    "{% if p['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
_PATCHES = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
#: Pixels that neither a clip of the task falls below nor the sheet of all cells exceeds.
_LIMITS = {"shortest_edge": 256, "longest_edge": 2**22}
FILES = {
    "qwen2_5_vl": (
        "preprocessor_config.json", {"processor_class": "Qwen2_5_VLProcessor", "size": _LIMITS}
    ),
    "qwen3_vl": (
        "video_preprocessor_config.json", {"processor_class": "Qwen3VLProcessor", "size": _LIMITS}
    ),
}  # fmt: skip
FAMILIES = tuple(FILES)

#: Pictures of all cells, each with other noise.
SHEETS = 8


def make_tokenizer() -> Any:
    """Words of the task, digits one by one for timestamps, the markers of the family."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[<>.]|[0-9]"), "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL, padding_side="left",
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(family: str, tokenizer: Any, seed: int) -> Any:
    """An untrained model of a family, two decoder layers wide `WIDTH`."""
    import transformers as hf

    def number(word: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(word))

    ids = {
        "image_token_id": number(IMAGE), "video_token_id": number(VIDEO),
        "vision_start_token_id": number("<|vision_start|>"),
        "vision_end_token_id": number("<|vision_end|>"), "tie_word_embeddings": False,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 2, 2]}
    text = {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None, "eos_token_id": None, "rope_parameters": rope,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": WIDTH // 2, "num_heads": 2, "out_hidden_size": WIDTH,
        "patch_size": 4, "intermediate_size": WIDTH,
    }  # fmt: skip
    torch.manual_seed(seed)
    if family == "qwen2_5_vl":
        # A window is a token: their order is that of the cells.
        own = {"window_size": 8, "fullatt_block_indexes": [], "tokens_per_second": 2}
        config = hf.Qwen2_5_VLConfig(vision_config=vision | own, text_config=text, **ids)
        model = hf.Qwen2_5_VLForConditionalGeneration(config)
    else:
        own = {"num_position_embeddings": 36, "deepstack_visual_indexes": [0]}
        text |= {"head_dim": WIDTH // 4, "rope_parameters": {**rope, "mrope_interleaved": True}}
        config = hf.Qwen3VLConfig(vision_config=vision | own, text_config=text, **ids)
        model = hf.Qwen3VLForConditionalGeneration(config)
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() > 1:
            # The families' own 0.02 is for widths of thousands.
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    for layer in model.model.language_model.layers:
        # Norms of heads hold logits below the width's root, 4: too flat to look one token up.
        for norm in ("q_norm", "k_norm"):
            if hasattr(layer.self_attn, norm):
                torch.nn.init.constant_(getattr(layer.self_attn, norm).weight, 1.5)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


@torch.no_grad()
def make_features(model: Any, processor: Any) -> None:
    """Gives a model the features that all have, and freezes what makes them."""
    visual, words = model.model.visual, model.get_input_embeddings()
    torch.nn.init.zeros_(visual.blocks[0].attn.proj.weight)
    torch.nn.init.zeros_(visual.blocks[0].attn.proj.bias)
    if hasattr(visual, "pos_embed"):
        torch.nn.init.zeros_(visual.pos_embed.weight)
    for level in getattr(visual, "deepstack_merger_list", ()):
        level.linear_fc2.weight.mul_(0.1)  # no louder than the embeddings that they are added to
    generator = torch.Generator().manual_seed(7)
    words.weight.copy_(torch.randn(words.weight.shape, generator=generator) * WIDTH**-0.5)
    codes = torch.linalg.qr(torch.randn(WIDTH // 2, len(NAMES) + 1, generator=generator)).Q.T
    ids = processor.tokenizer.convert_tokens_to_ids(list(NAMES))
    words.weight[ids] = F.pad(codes[:-1], (0, WIDTH // 2))
    cells = torch.arange(PAIRS + GREYS)
    left, right = cells // len(NAMES), cells % len(NAMES)
    right[PAIRS:] = len(NAMES)  # so that greys are (grey, grey)
    wanted = torch.cat((codes[left], codes[right]), dim=1)
    last = (
        visual.merger.linear_fc2 if hasattr(visual.merger, "linear_fc2") else visual.merger.mlp[2]
    )
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    rng = np.random.default_rng(7)
    for _ in range(SHEETS):
        features_of_cells(model, processor, rng)
    hook.remove()
    inputs = F.pad(torch.cat(seen).double(), (0, 1), value=1.0)
    square = inputs.T @ inputs + 1e-3 * torch.eye(inputs.shape[1], dtype=torch.float64)
    fitted = torch.linalg.solve(square, inputs.T @ wanted.repeat(SHEETS, 1).double()).float()
    last.weight.copy_(fitted[:-1].T)
    last.bias.copy_(fitted[-1])
    visual.requires_grad_(False)
    words.requires_grad_(False)


def features_of_cells(model: Any, processor: Any, rng: np.random.Generator) -> Tensor:
    """Features of every cell by its number, `[72, (1 + levels) * D]`, from a sheet with noise."""
    frames = render(np.arange(PAIRS + GREYS), rng, noise=8.0)
    pixels, grid = processor.patches(torch.from_numpy(frames).permute(0, 3, 1, 2))
    inputs = {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([grid])}
    made = adapter_for(model).video_features(model, inputs)
    return torch.cat((made.rows, *made.deepstack), dim=-1)


def _worded() -> str:
    """The question about red as `cacovid train` puts it to a model."""
    return word_problem(TrainingSample("", question(0), NAMES[1], "exact"))


class Conversations:
    """Batches of conversations of all questions on a clip, all of one length.

    Args:
        model: The model that reads them.
        processor: Its processor.
        seed: Of clips and questions.
    """

    def __init__(self, model: Any, processor: Any, seed: int) -> None:
        self._model, self._processor = model, processor
        self._rng = np.random.default_rng([seed, 31])
        tokenizer = processor.tokenizer
        self._ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(NAMES)))
        clip = render(draw_clips(1, self._rng).cells[0], self._rng)
        # The layout is that of every conversation: red is asked for, green the answer.
        inputs = video_inputs(model, processor, clip, "", self._text())
        self._layout = inputs["input_ids"][0]
        self._asked = (self._layout == self._ids[0]).nonzero().flatten()
        self._said = (self._layout == self._ids[1]).nonzero().flatten()
        prompt = adapter_for(model).embed(model, inputs).prompt
        self._positions, self._video = prompt.position_ids[:, None], prompt.video_index
        with torch.no_grad():
            self._sheets = [features_of_cells(model, processor, self._rng) for _ in range(SHEETS)]
        #: Places whose next word is learned: an answer, and its end.
        self.read = torch.stack((self._said - 1, self._said), dim=1).flatten()

    def _text(self) -> str:
        messages: list[dict[str, Any]] = []
        for _ in range(SHOWN):
            for role, text in (("user", _worded()), ("assistant", NAMES[1])):
                messages.append({"role": role, "content": [{"type": "text", "text": text}]})
        messages[0]["content"].insert(0, {"type": "video"})
        return str(self._processor.apply_chat_template(messages))

    def logits(self, count: int) -> tuple[Tensor, Tensor]:
        """The model's logits `[count, 2 * SHOWN, V]` at `read`, and the words that are right."""
        clips = draw_clips(count, self._rng)
        ids = self._layout.repeat(count, 1)
        ids[:, self._asked] = self._ids[torch.from_numpy(clips.asked)]
        ids[:, self._said] = self._ids[torch.from_numpy(clips.answers)]
        sheet = self._sheets[self._rng.integers(SHEETS)]
        features = sheet[torch.from_numpy(clips.cells)]
        words = self._model.get_input_embeddings()(ids)
        rows = F.pad(words, (0, features.shape[-1] - words.shape[-1]))
        rows = rows.index_copy(1, self._video, features)
        with deepstack.reading(self._model):
            out = self._model(
                inputs_embeds=rows,
                attention_mask=torch.ones_like(ids),
                position_ids=self._positions.expand(-1, count, -1),
                logits_to_keep=self.read,
                use_cache=False,
            )
        return out.logits, ids[:, self.read + 1]


def train_model(
    model: Any,
    processor: Any,
    seed: int,
    steps: int,
    batch: int = 16,
    rate: float = 3e-3,
    on_step: Callable[[int, float], None] = lambda step, accuracy: None,
) -> float:
    """Trains on fresh clips, until nearly all of the last 50 batches is right.

    Args:
        model: Trained in place.
        processor: Its processor.
        seed: Of clips and questions.
        steps: At most.
        batch: Conversations of a step.
        rate: Of AdamW, after 50 steps in which it rises.
        on_step: Told each step and its batch's share of right answers.

    Returns:
        The share of right answers in the last 50 batches.
    """
    drawn = Conversations(model, processor, seed)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
    right: list[float] = []
    for step in range(steps):
        logits, words = drawn.logits(batch)
        loss = F.cross_entropy(logits.flatten(0, 1), words.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        right.append(float((logits.argmax(-1) == words)[:, ::2].float().mean()))
        on_step(step + 1, right[-1])
        if sum(right[-50:]) >= 50 * 0.995:
            break
    return sum(right[-50:]) / len(right[-50:])


def make_checkpoint(
    folder: Path, family: str, seed: int, steps: int,
    on_step: Callable[[int, float], None] = lambda step, accuracy: None,
) -> None:  # fmt: skip
    """Trains a tiny model and writes it as a checkpoint; a finished one is left alone.

    Args:
        folder: Where to.
        family: One of `FAMILIES`.
        seed: Of the weights and the training clips.
        steps: Of the training, at most.
        on_step: As for `train_model`.

    Raises:
        SystemExit: if the model did not learn the task.
    """
    if (folder / "config.json").exists():
        return
    tokenizer = make_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    name, content = FILES[family]
    (folder / name).write_text(json.dumps(content | _PATCHES))
    reading = {"max_frames": PICTURES * HELD, "fps": FPS}
    (folder / "cacovid.json").write_text(json.dumps(reading))
    processor = load_processor(folder)
    model = make_model(family, tokenizer, seed)
    make_features(model, processor)
    right = train_model(model, processor, seed, steps, on_step=on_step)
    if right < 0.9:
        raise SystemExit(f"{folder.name} answers {right:.1%} after {steps} steps; give it more")
    model.eval().save_pretrained(folder)
