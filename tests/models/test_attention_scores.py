"""Received attention against the model's own attention maps."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.models import adapter_for, received_attention
from cacovid.models.base import QuestionSource


@pytest.fixture(scope="module")
def batch(lab, processor):
    questions = ["what colour is the first thing ?", "which is last ?"]
    return lab.ask(processor, questions, [lab.clip(i) for i in range(3)], [2, 1])


@pytest.fixture
def embedded(model, batch, tokenizer):
    source = QuestionSource(tokenizer=tokenizer)
    return adapter_for(model).embed(model, batch, question=source)


def own_maps(model, prompt, begin, end):
    """Attention maps `[layers][H, S, S]` of one prompt, from the eager implementation."""
    decoder = model.model.language_model
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = "eager"
    try:
        with torch.no_grad():
            out = decoder(
                inputs_embeds=prompt.embeds[None, begin:end],
                attention_mask=torch.ones(1, end - begin, dtype=torch.int64),
                position_ids=prompt.position_ids[None, begin:end],
                output_attentions=True,
                use_cache=False,
            )
    finally:
        decoder.config._attn_implementation = before
    return [layer[0] for layer in out.attentions]


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("queries", ["last", "question"])
def test_equals_the_attention_maps(model, embedded, layer, queries):
    prompt = embedded.prompt
    expected = []
    for begin, end in zip(prompt.prompt_offsets, prompt.prompt_offsets[1:], strict=False):
        rows = [end - 1]
        if queries == "question":
            rows = sorted({i for i in prompt.question_index.tolist() if begin <= i < end})
        attention = own_maps(model, prompt, begin, end)[layer].mean(0)
        expected.append(attention[[row - begin for row in rows]].mean(0))
    expected = torch.cat(expected)[prompt.video_index]
    got = received_attention(model, prompt, layer, queries)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


def test_embed_fills_in_what_is_needed(model, batch, tokenizer):
    name = "received_attention/1/last"
    embedded = adapter_for(model).embed(model, batch, needs={name})
    expected = received_attention(model, embedded.prompt, 1, "last")
    assert torch.equal(embedded.prompt.extras[name], expected)
    with pytest.raises(UnsupportedModelError, match="'vision_values'"):
        adapter_for(model).embed(model, batch, needs={"vision_values"})
    for wrong in ("received_attention/x/last", "received_attention/1/first"):
        with pytest.raises(InvalidInputError, match="is not known"):
            adapter_for(model).embed(model, batch, needs={wrong})


def test_layers_that_are_not_there(model, embedded):
    with pytest.raises(InvalidInputError, match="layers 0 to 2"):
        received_attention(model, embedded.prompt, 3)


def test_no_question(model, batch):
    mask = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    prompt = adapter_for(model).embed(model, batch, question=QuestionSource(mask=mask)).prompt
    with pytest.raises(InvalidInputError, match="prompt 0 has no question tokens"):
        received_attention(model, prompt, 1, "question")


def test_a_question_before_the_video(model, embedded):
    prompt = embedded.prompt
    before = prompt.video_index[0] - 1  # before both videos of the first prompt
    own = prompt.question_index >= prompt.prompt_offsets[1]
    moved = torch.cat((before[None], prompt.question_index[own]))
    early = dataclasses.replace(prompt, question_index=moved, question_offsets=None)
    with pytest.raises(InvalidInputError, match="question of prompt 0 ends before a video begins"):
        received_attention(model, early, 1, "question")
    assert bool((received_attention(model, early, 1, "last") > 0).any())
    # Between the two videos of the prompt: the second one sees none of it.
    between = dataclasses.replace(
        early, question_index=torch.cat((prompt.video_index[:1], moved[1:]))
    )
    with pytest.raises(InvalidInputError, match="ends before a video begins"):
        received_attention(model, between, 1, "question")


def test_later_layers_do_not_run(model, embedded):
    calls = []
    layers = model.model.language_model.layers
    handles = [
        layer.mlp.register_forward_hook(lambda *_, n=n: calls.append(n))
        for n, layer in enumerate(layers)
    ]
    try:
        received_attention(model, embedded.prompt, 1)
    finally:
        for handle in handles:
            handle.remove()
    assert set(calls) == {0}


@pytest.mark.parametrize("layer", [0, 2])
def test_inputs_of_a_layers_attention(model, batch, tokenizer, layer):
    name = f"attention_inputs/{layer}"
    source = QuestionSource(tokenizer=tokenizer)
    prompt = adapter_for(model).embed(model, batch, {name}, question=source).prompt
    decoder = model.model.language_model
    expected = []
    for begin, end in zip(prompt.prompt_offsets, prompt.prompt_offsets[1:], strict=False):
        with torch.no_grad():
            hidden = decoder(
                inputs_embeds=prompt.embeds[None, begin:end],
                position_ids=prompt.position_ids[None, begin:end],
                attention_mask=torch.ones(1, end - begin, dtype=torch.int64),
                output_hidden_states=True, use_cache=False,
            ).hidden_states[layer]  # fmt: skip
            expected.append(decoder.layers[layer].input_layernorm(hidden)[0])
    torch.testing.assert_close(prompt.extras[name], torch.cat(expected), rtol=1e-5, atol=1e-5)
    with pytest.raises(InvalidInputError, match="layers 0 to 2"):
        adapter_for(model).embed(model, batch, {"attention_inputs/3"}, question=source)
