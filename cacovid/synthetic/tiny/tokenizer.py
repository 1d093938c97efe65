"""A word-level tokenizer with a chat template, made from the words of the synthetic task."""

from __future__ import annotations

import re
from typing import Any

from cacovid.synthetic import questions, world

PAD, UNK, START, END = "<pad>", "<unk>", "<|im_start|>", "<|im_end|>"
IMAGE, VIDEO = "<image>", "<video>"
SPECIAL = (PAD, UNK, START, END, IMAGE, VIDEO)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|> ' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant\n' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """All words, in a fixed order: special tokens, then option letters, then the rest."""
    words: set[str] = {"user", "assistant", "system", ".", "?", ",", ":", "!", "'"}
    for templates in questions.TEMPLATES.values():
        for template in templates:
            words.update(_split(re.sub(r"\{\d\}", " ", template)))
    for names in questions.CLASSES.values():
        words.update(names)
    words.update(world.COLOUR_NAMES + world.SHAPES + world.PATTERNS + ("thing", "things", "big"))
    words.update(("video", "color", "in", "this", "object", "objects"))
    return [*SPECIAL, *questions.LETTERS, *sorted(words - set(questions.LETTERS))]


def build_tokenizer() -> Any:
    """A `PreTrainedTokenizerFast` over `vocabulary()`; text is lower-cased, "colour" = "color"."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNK))
    core.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace("colour", "color")]
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    # Letters stay upper-case words of their own: "A. red" against "a red star".
    core.add_tokens([AddedToken(c, single_word=True, normalized=False) for c in questions.LETTERS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=END,
        additional_special_tokens=[START, END, IMAGE, VIDEO],
        padding_side="left",
        model_max_length=4096,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _split(text: str) -> list[str]:
    text = text.lower().replace("colour", "color")
    return re.findall(r"\w+|[^\w\s]", text)
