"""Requests of SGLang: what a tiny Qwen model's pruned prompt becomes, without the engine."""

from __future__ import annotations

import pytest
import torch

from cacovid import prune_inputs
from cacovid.engines import sglang
from cacovid.errors import InvalidInputError, UnsupportedModelError
from tests.models.families import FAMILIES, QUESTIONS, Request, make_tokenizer

QWEN = [family for family in FAMILIES if family.name.startswith("qwen")]
ASKING = "attention:1:question"


@pytest.fixture(scope="module", params=QWEN, ids=repr)
def case(request):
    family, tokenizer = request.param, make_tokenizer()
    return family, tokenizer, family.make_model(tokenizer)


def pruned_of(case, *requests, method=ASKING, retention=0.3, **settings):
    family, tokenizer, model = case
    inputs = family.make_inputs(tokenizer, requests)
    return prune_inputs(model, inputs, method, retention, tokenizer=tokenizer, **settings)


def test_the_request_is_the_pruned_prompt(case):
    model = case[2]
    pruned = pruned_of(case, Request(QUESTIONS[0], (0, 1)))
    request = sglang.prepare(pruned, model)
    (item,) = request["video_data"]
    assert set(request) == {"input_ids", "video_data"}
    assert request["input_ids"] == pruned.inputs["input_ids"][0].tolist()
    assert (item["format"], item["modality"]) == ("processor_output", "VIDEO")
    rows, width = item["precomputed_embeddings"], model.config.text_config.hidden_size
    levels = len(pruned.features.deepstack)
    assert (levels > 0) == (case[0].name == "qwen3_vl")
    assert rows.shape == (sum(pruned.selection.counts), width * (1 + levels))
    assert rows.device.type == "cpu" and not rows.requires_grad
    keep = pruned.selection.keep
    for number, level in enumerate((pruned.features.rows, *pruned.features.deepstack)):
        assert torch.equal(rows[:, number * width : (number + 1) * width], level[keep])
    assert torch.equal(item["mrope_positions"], pruned.inputs["position_ids"][1:, 0])


def test_decoding_goes_on_where_the_whole_prompt_would(case):
    _, _, model = case
    asked = Request(QUESTIONS[1], (2,))
    few = sglang.prepare(pruned_of(case, asked, retention=0.2), model)
    whole = sglang.prepare(pruned_of(case, asked, retention=1.0), model)
    after = [len(r["input_ids"]) + r["video_data"][0]["mrope_position_delta"] for r in (few, whole)]
    assert after[0].shape == (1, 1)
    assert torch.equal(*after)
    assert len(few["input_ids"]) < len(whole["input_ids"])


def test_compact_positions(case):
    pruned = pruned_of(case, Request(QUESTIONS[0]), positions="compact")
    item = sglang.prepare(pruned, case[2])["video_data"][0]
    assert torch.equal(item["mrope_positions"], pruned.inputs["position_ids"][1:, 0])


def test_another_question_is_another_request(case):
    one, two = (
        sglang.prepare(pruned_of(case, Request(question)), case[2]) for question in QUESTIONS[:2]
    )
    assert not torch.equal(
        one["video_data"][0]["precomputed_embeddings"],
        two["video_data"][0]["precomputed_embeddings"],
    )
    both = sglang.together([one, two])
    assert both["input_ids"] == [one["input_ids"], two["input_ids"]]
    assert both["video_data"] == [one["video_data"], two["video_data"]]


def test_what_cannot_be_prepared(case):
    model = case[2]
    with pytest.raises(InvalidInputError, match="2 prompts; prepare one at a time"):
        sglang.prepare(pruned_of(case, Request(QUESTIONS[0]), Request(QUESTIONS[1])), model)
    with pytest.raises(UnsupportedModelError, match="holds an image"):
        sglang.prepare(pruned_of(case, Request(QUESTIONS[0], image=True)), model)
    with pytest.raises(InvalidInputError, match="no request"):
        sglang.together([])


def test_other_models():
    (family,) = (f for f in FAMILIES if f.name == "llava_next_video")
    tokenizer = make_tokenizer()
    case = (family, tokenizer, family.make_model(tokenizer))
    with pytest.raises(UnsupportedModelError, match="SGLang takes embeddings of videos for Qwen"):
        sglang.prepare(pruned_of(case, Request(QUESTIONS[0])), case[2])
