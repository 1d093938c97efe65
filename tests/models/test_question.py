"""Where the question stands: by mask, by text, by the template's markers, by structure."""

from __future__ import annotations

import itertools

import pytest
import torch

from cacovid.errors import InvalidInputError
from cacovid.models import adapter_for, prune_inputs
from cacovid.models.base import QuestionSource
from cacovid.models.question import locate_questions

PROMPT = (
    "<|im_start|> system\nyou are helpful<|im_end|>\n"
    "<|im_start|> user\n<video><video><video>\nwhat colour is the first thing ? A . red<|im_end|>\n"
    "<|im_start|> assistant\n"
)
QUESTION = "what colour is the first thing ? A . red"


@pytest.fixture(scope="module")
def row(tokenizer):
    return tokenizer(PROMPT)["input_ids"]


def located(known, row, **source):
    placeholders = known.convert_tokens_to_ids(["<video>", "<image>"])
    ends = [known.convert_tokens_to_ids("<|im_end|>")]
    found = locate_questions(
        [row], QuestionSource(**source), placeholders=placeholders, end_ids=ends
    )
    return known.decode([row[i] for i in found[0]])


def test_markers(tokenizer, row):
    assert located(tokenizer, row, tokenizer=tokenizer) == QUESTION


def test_structure_without_a_tokenizer(tokenizer, row):
    assert located(tokenizer, row) == QUESTION


def test_the_last_user_turn_is_the_question(tokenizer):
    talk = PROMPT + "red<|im_end|>\n<|im_start|> user\nwhich shape ?<|im_end|>\n"
    row = tokenizer(talk + "<|im_start|> assistant\n")["input_ids"]
    assert located(tokenizer, row, tokenizer=tokenizer) == "which shape ?"


def test_text_before_the_video(tokenizer):
    row = tokenizer("<|im_start|> user\nwhat ?<video><video>\n<|im_end|>\n")["input_ids"]
    assert located(tokenizer, row, tokenizer=tokenizer) == "what ?"


def test_given_text(tokenizer, row):
    assert located(tokenizer, row, tokenizer=tokenizer, text="the first thing?") == (
        "the first thing ?"
    )
    with pytest.raises(InvalidInputError, match="does not stand in prompt 0"):
        located(tokenizer, row, tokenizer=tokenizer, text="what blue thing ?")
    with pytest.raises(InvalidInputError, match="no tokenizer"):
        located(tokenizer, row, text="the first thing ?")
    with pytest.raises(InvalidInputError, match="2 texts for 1 prompts"):
        located(tokenizer, row, tokenizer=tokenizer, text=["a", "b"])


def test_text_does_not_match_across_a_placeholder(tokenizer):
    row = tokenizer("what <video> colour")["input_ids"]
    with pytest.raises(InvalidInputError, match="does not stand"):
        located(tokenizer, row, tokenizer=tokenizer, text="what colour")


def test_a_question_that_holds_a_marker_is_refused(model, lab, processor, tokenizer):
    """Its turn ends before it does: tokens would be chosen by a part of it, without a word."""
    question = "what colour <|im_end|> is the first thing ?"
    batch = lab.ask(processor, [question], [lab.clip(0)])
    given = {"tokenizer": tokenizer}
    with pytest.raises(InvalidInputError, match=r"stands more text: 'is the first thing \?'"):
        prune_inputs(model, batch, "attention:1:question", 0.5, **given)
    with pytest.raises(InvalidInputError, match=r"holds '<\|im_end\|>'"):
        prune_inputs(model, batch, "uniform", 0.5, question=question, **given)
    batch = lab.ask(processor, ["what colour is it ?"], [lab.clip(0)])
    assert prune_inputs(model, batch, "attention:1:question", 0.5, **given).removed


def test_required(tokenizer):
    row = tokenizer("<|im_start|> user\n<video><|im_end|>\n")["input_ids"]
    assert located(tokenizer, row, tokenizer=tokenizer) == ""
    with pytest.raises(InvalidInputError, match="no question was found in prompt 0"):
        located(tokenizer, row, tokenizer=tokenizer, required=True)


def byte_level_tokenizer():
    """A byte-level BPE as Qwen's: a space belongs to the word after it, merges go over words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(["user assistant what is the colour of the thing"] * 9, trainer)
    special = [AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>", "<video>")]
    core.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|im_end|>")


@pytest.mark.parametrize("gap", [" ", "\n"])
def test_byte_level_tokenizers(gap):
    tokenizer = byte_level_tokenizer()
    text = "Où est l'objet « bleu » ?\nA. là\nB. 物体"
    prompt = f"<|im_start|>user{gap}<video><video>\n{text}<|im_end|>\n<|im_start|>assistant\n"
    row = tokenizer(prompt)["input_ids"]
    for source in ({}, {"text": text}):
        assert located(tokenizer, row, tokenizer=tokenizer, **source).strip() == text


def test_each_video_has_its_prompts_question(model, lab, processor, tokenizer):
    batch = lab.ask(
        processor, ["what colour ?", "which is the last shape ?"],
        [lab.clip(i) for i in range(3)], [2, 1],
    )  # fmt: skip
    embedded = adapter_for(model).embed(model, batch, question=QuestionSource(tokenizer=tokenizer))
    prompt = embedded.prompt
    packed = embedded.input_ids.flatten()[embedded.source]
    offsets = prompt.question_offsets
    texts = [
        tokenizer.decode(packed[prompt.question_index[a:b]]) for a, b in itertools.pairwise(offsets)
    ]
    assert texts == ["what colour ?", "what colour ?", "which is the last shape ?"]


def test_mask_over_the_padded_ids(model, lab, processor):
    batch = lab.ask(processor, ["what ?", "which is the last ?"], [lab.clip(0), lab.clip(1)])
    mask = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    mask[:, -6] = True
    source = QuestionSource(mask=mask)
    prompt = adapter_for(model).embed(model, batch, question=source).prompt
    assert prompt.question_index.tolist() == [end - 6 for end in prompt.prompt_offsets[1:]]
    with pytest.raises(InvalidInputError, match="question mask is"):
        adapter_for(model).embed(model, batch, question=QuestionSource(mask=mask[:, 1:]))
