"""Pruning inside the language model of every family, on a tiny random model of it."""

from __future__ import annotations

import pytest
import torch

from cacovid.errors import UnsupportedModelError
from cacovid.models import adapter_for, attach
from tests.models.families import FAMILIES, QUESTIONS, Request, make_tokenizer

NEW = {"max_new_tokens": 4, "do_sample": False}


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
@torch.no_grad()
def test_fastv_on_every_family(family):
    tokenizer = make_tokenizer()
    model = family.make_model(tokenizer)
    inputs = family.make_inputs(tokenizer, [Request(QUESTIONS[0], (0, 1))])
    decoder = adapter_for(model).text_model(model)
    if hasattr(decoder, "_deepstack_process"):
        with (
            attach(model, "fastv:1", 0.9, tokenizer=tokenizer),
            pytest.raises(UnsupportedModelError, match="between its layers"),
        ):
            model.generate(**inputs, **NEW)
        return
    plain = model.generate(**inputs, **NEW)
    with attach(model, "fastv:1", 1.0, tokenizer=tokenizer):
        assert torch.equal(model.generate(**inputs, **NEW), plain)
    depth, share = len(decoder.layers), 0.8
    said = []
    for implementation in ("sdpa", "eager"):
        before = decoder.config._attn_implementation
        decoder.config._attn_implementation = implementation
        try:
            with attach(model, "fastv:1", share, tokenizer=tokenizer) as attached:
                said.append(model.generate(**inputs, **NEW).tolist())
                hook = attached.last.hook
        finally:
            decoder.config._attn_implementation = before
        expected = [
            int((share * depth - 1) * total / (depth - 1) + 1e-9)
            for total in hook.grid.tokens_per_video
        ]
        assert list(hook.counts) == expected
    assert said[0] == said[1]
