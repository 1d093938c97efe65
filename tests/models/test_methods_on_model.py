"""Every method of the register on a real model, from pixels to generated tokens."""

from __future__ import annotations

import pytest
import torch

from cacovid import methods, prune_inputs
from cacovid.errors import UnsupportedModelError

#: Told the truth, or of policies stored beside a model: tested elsewhere.
LEFT_OUT = {"cacovid", "hybrid", "oracle", "score"}
BEFORE = [
    name
    for name in methods.names()
    if name not in LEFT_OUT and not getattr(methods.get(name), "inside", False)
]


@pytest.fixture
def batch(lab, processor):
    return lab.ask(
        processor, ["what colour is the first thing ?"], [lab.clip(i, 8) for i in range(2)], [2]
    )


def generate(model, inputs):
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("name", BEFORE)
def test_it_prunes_and_the_model_answers(name, model, batch, tokenizer):
    pruned = prune_inputs(model, batch, name, 0.25, tokenizer=tokenizer)
    assert pruned.method == name
    assert pruned.tokens == {"video": 144, "kept": 36} and pruned.selection.counts == (18, 18)
    assert pruned.removed == 108
    assert generate(model, pruned.inputs).shape[1] == pruned.inputs["input_ids"].shape[1] + 4
    if pruned.selection.embeds is not None:
        # What was merged stands in the prompt.
        rows = pruned.inputs["inputs_embeds"][0]
        inside = (rows[:, None] == pruned.selection.embeds[None]).all(dim=-1).any(dim=0)
        assert bool(inside.all())


@pytest.mark.parametrize("name", BEFORE)
def test_keeping_everything_is_the_plain_model(name, model, batch, tokenizer):
    plain = generate(model, batch)[:, batch["input_ids"].shape[1] :]
    pruned = prune_inputs(model, batch, name, 1.0, tokenizer=tokenizer)
    out = generate(model, pruned.inputs)[:, pruned.inputs["input_ids"].shape[1] :]
    assert out.tolist() == plain.tolist()


def test_the_oracle_says_where_it_works(model, batch, tokenizer):
    with pytest.raises(UnsupportedModelError, match="eval --embedded"):
        prune_inputs(model, batch, "oracle", 0.25, tokenizer=tokenizer)
