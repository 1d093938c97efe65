"""Pruning inside the language model, against layers called one by one."""

from __future__ import annotations

import pytest
import torch

from cacovid import attach, methods, prune_inputs
from cacovid.errors import UnsupportedModelError
from cacovid.models import VideoQA, adapter_for, running
from cacovid.models.base import QuestionSource

QUESTION = "what colour is the first thing ?"

pytestmark = pytest.mark.filterwarnings("ignore:.*layer-averaged retention")


@pytest.fixture
def batch(lab, processor):
    return lab.ask(processor, [QUESTION], [lab.clip(i, 8) for i in range(2)], [2])


def embed(model, batch, tokenizer):
    return adapter_for(model).embed(model, batch, question=QuestionSource(tokenizer=tokenizer))


def by_hand(model, embeds, positions, layer, kept):
    """Logits of the last token when rows are dropped before one layer, without hooks or cache."""
    decoder = model.model.language_model
    hidden = embeds[None]
    rotary = decoder.rotary_emb(hidden, positions[None])
    for number, block in enumerate(decoder.layers):
        if number == layer:
            hidden = hidden[:, kept]
            rotary = tuple(part[:, kept] for part in rotary)
        hidden = block(hidden, attention_mask=None, position_embeddings=rotary)
    return model.lm_head(decoder.norm(hidden))[0, -1]


def kept_rows(prompt, selection, length):
    """Everything but the video tokens that were dropped."""
    keep = torch.ones(length, dtype=torch.bool)
    keep[prompt.video_index] = False
    keep[prompt.video_index[selection.keep]] = True
    return keep.nonzero().flatten()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_fastv_decodes_as_layers_called_one_by_one(implementation, model, batch, tokenizer):
    prompt = embed(model, batch, tokenizer).prompt
    config = model.model.language_model.config
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        with attach(model, "fastv:1", 0.5, tokenizer=tokenizer) as attached:
            out = model.generate(**batch, max_new_tokens=5, do_sample=False)
            logits = model(**batch).logits
            hook = attached.last.hook
    finally:
        config._attn_implementation = before
    # Of 3 layers 1 runs on 72 tokens of each video, the others on (0.5 * 3 * 72 - 72) / 2 = 18.
    assert hook.tokens_per_layer == [144, 36, 36] and hook.counts == (18, 18)
    assert hook.layer_average == 0.5
    assert logits.shape[1] == hook.length - 144 + 36
    embeds, positions = prompt.embeds, prompt.position_ids
    for token in out[0, batch["input_ids"].shape[1] :]:
        kept = kept_rows(prompt, hook.selection, len(embeds))
        expected = by_hand(model, embeds, positions, 1, kept)
        if len(embeds) == len(prompt.embeds):
            torch.testing.assert_close(logits[0, -1], expected, rtol=1e-4, atol=1e-4)
        assert int(expected.argmax()) == int(token)
        row = model.get_input_embeddings()(token[None])
        embeds = torch.cat((embeds, row))
        positions = torch.cat((positions, positions[-1:] + 1))


@torch.no_grad()
def test_fastv_keeps_the_most_attended_tokens(model, batch, tokenizer):
    from cacovid.models import received_attention

    prompt = embed(model, batch, tokenizer).prompt
    with attach(model, "fastv:2", 0.75, tokenizer=tokenizer) as attached:
        model(**batch)
    received = received_attention(model, prompt, 1, "last")
    # (0.75 * 3 * 72 - 2 * 72) / 1 = 18 of each video.
    expected = methods.top_k(received, prompt.grid, 0.25)
    assert attached.last.hook.selection.keep.tolist() == expected.keep.tolist()


@torch.no_grad()
def test_framefusion_of_a_still_video_is_a_shorter_video(model, processor, tokenizer, lab):
    still = lab.clip(3, 1).repeat(8, axis=0)
    batch = lab.ask(processor, [QUESTION], [still])
    with attach(model, "framefusion", 0.25, tokenizer=tokenizer) as attached:
        out = model.generate(**batch, max_new_tokens=4, do_sample=False)
        logits = model(**batch).logits[0, -1]
        kept = attached.last.kept
    # Copies merge into what they are copies of: 72 tokens, 18 of them in every layer.
    assert attached.last.hook.tokens_per_layer == [18, 18, 18]
    method = lab.HandPicked(kept.keep, kept.counts)
    pruned = prune_inputs(model, batch, method, 0.25, tokenizer=tokenizer)
    plain = model.generate(**pruned.inputs, max_new_tokens=4, do_sample=False)
    expected = model(**pruned.forward_inputs).logits[0, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert out[0, -4:].tolist() == plain[0, -4:].tolist()


@pytest.mark.parametrize("name", ["fastv", "framefusion"])
@torch.no_grad()
def test_at_full_retention_it_is_the_plain_model_and_leaves_nothing(name, model, batch, tokenizer):
    plain = model.generate(**batch, max_new_tokens=4, do_sample=False)
    with attach(model, name, 1.0, tokenizer=tokenizer):
        out = model.generate(**batch, max_new_tokens=4, do_sample=False)
        again = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert out.tolist() == plain.tolist() == again.tolist()
    for layer in model.model.language_model.layers:
        assert not layer._forward_pre_hooks and not layer.self_attn._forward_pre_hooks


@pytest.mark.parametrize("name", ["fastv", "framefusion"])
def test_video_qa_answers_with_it(name, model, processor, lab):
    qa = VideoQA(model, processor)
    answer = qa.ask(lab.clip(1, 6), QUESTION, 0.4, method=name, max_new_tokens=3)
    assert answer.method == name and answer.tokens["video"] == 54
    assert answer.tokens["kept"] == sum(answer.selection.counts) < 54
    # Layers before the last may have run on more.
    assert answer.tokens["kept"] <= answer.tokens["layer_average"] < 54


def test_what_it_cannot_do_is_said(model, batch, processor, tokenizer, lab):
    with pytest.raises(UnsupportedModelError, match=r"cacovid\.attach"):
        prune_inputs(model, batch, "fastv", 0.5, tokenizer=tokenizer)
    with attach(model, "fastv:1", 0.5, tokenizer=tokenizer):
        with pytest.raises(UnsupportedModelError, match="one prompt"):
            model.generate(**batch, max_new_tokens=2, num_beams=2)
        two = lab.ask(processor, [QUESTION, QUESTION], [lab.clip(0), lab.clip(1)])
        with pytest.raises(Exception, match="one prompt at a time"):
            model.generate(**two, max_new_tokens=2)
    hook = methods.get("fastv:1")(embed(model, batch, tokenizer).prompt, 0.5)
    with running(model, hook), pytest.raises(UnsupportedModelError, match="read in one piece"):
        model(input_ids=batch["input_ids"][:, :5])
