"""What methods ask of the vision tower, against the tower's own attention maps."""

from __future__ import annotations

import pytest
import torch

from cacovid.errors import UnsupportedModelError
from cacovid.models import adapter_for
from cacovid.models.base import QuestionSource
from cacovid.models.column_means import column_means
from cacovid.models.vision_extras import watch_vision

NEEDS = ("vision_attention", "vision_keys", "vision_pooling_attention?")


def embed(model, batch, tokenizer, needs=NEEDS, features=None):
    source = QuestionSource(tokenizer=tokenizer)
    return adapter_for(model).embed(model, batch, needs, question=source, features=features)


@pytest.fixture
def batch(lab, processor):
    questions = ["what colour is the first thing ?", "which is last ?"]
    return lab.ask(processor, questions, [lab.clip(i) for i in range(3)], [2, 1])


def test_attention_and_keys_are_those_of_the_penultimate_layer(model, batch, tokenizer):
    hooks = dict(model.model.vision_tower._forward_pre_hooks)
    prompt = embed(model, batch, tokenizer).prompt
    assert model.model.vision_tower._forward_pre_hooks == hooks
    tower = model.model.vision_tower
    pixels = batch["pixel_values_videos"].flatten(0, 1)
    before = tower.config._attn_implementation
    tower.config._attn_implementation = "eager"
    try:
        with torch.no_grad():
            out = tower(pixels, output_attentions=True, output_hidden_states=True)
    finally:
        tower.config._attn_implementation = before
    received = out.attentions[-2].mean(dim=(1, 2))
    expected = model.model.apply_pooling(received[..., None]).flatten()
    got = prompt.extras["vision_attention"]
    assert got.shape == (prompt.grid.num_tokens,) and got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)
    encoder = getattr(tower, "vision_model", tower).encoder
    layer = encoder.layers[-2]
    with torch.no_grad():
        keys = layer.self_attn.k_proj(layer.layer_norm1(out.hidden_states[-3]))
    expected = model.model.apply_pooling(keys).flatten(0, 1)
    torch.testing.assert_close(prompt.extras["vision_keys"], expected, rtol=1e-4, atol=1e-5)
    assert "vision_pooling_attention" not in prompt.extras  # the model has no pooling head


def test_features_are_the_same_and_carry_the_extras_to_further_questions(model, batch, tokenizer):
    plain = embed(model, batch, tokenizer, needs=())
    first = embed(model, batch, tokenizer)
    assert torch.equal(plain.prompt.embeds, first.prompt.embeds)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    again = embed(model, text, tokenizer, features=first.features)
    assert torch.equal(again.prompt.extras["vision_keys"], first.prompt.extras["vision_keys"])
    with pytest.raises(UnsupportedModelError, match="earlier call"):
        embed(model, text, tokenizer, features=plain.features)
    # With the pixels at hand the tower runs once more.
    late = embed(model, batch, tokenizer, features=plain.features)
    assert torch.equal(late.prompt.extras["vision_keys"], first.prompt.extras["vision_keys"])


@pytest.mark.parametrize("name", ["vision_pooling_attention", "evidence", "nosuch"])
def test_an_extra_that_is_not_to_be_had_is_refused_unless_it_is_optional(
    name, model, batch, tokenizer
):
    with pytest.raises(UnsupportedModelError, match=name):
        embed(model, batch, tokenizer, needs=(name,))
    assert name not in embed(model, batch, tokenizer, needs=(f"{name}?",)).prompt.extras


def test_the_pooling_heads_attention():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=24, patch_size=4,
    )  # fmt: skip
    tower = SiglipVisionModel(config).eval()
    head = tower.head if hasattr(tower, "head") else tower.vision_model.head
    torch.nn.init.normal_(head.attention.in_proj_weight)
    if not hasattr(tower, "head"):
        pytest.skip("this release keeps the head inside vision_model")
    with watch_vision(tower, ["vision_pooling_attention?"]) as caught, torch.no_grad():
        hidden = tower(torch.randn(3, 3, 24, 24)).last_hidden_state
        probe = head.probe.repeat(3, 1, 1)
        expected = head.attention(probe, hidden, hidden, average_attn_weights=True)[1][:, 0]
    torch.testing.assert_close(caught["vision_pooling_attention"][0], expected)


def test_column_means_in_blocks_of_any_size():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(3, h, 5, 4, generator=generator) for h in (4, 2))
    hidden = torch.arange(5)[None] > torch.arange(5)[:, None]
    logits = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * 0.5
    expected = logits.masked_fill(hidden, -torch.inf).softmax(-1).mean(dim=(1, 2))
    for held in (1, 45, 130, 1 << 20):
        torch.testing.assert_close(column_means(query, key, 0.5, hidden, held), expected)
