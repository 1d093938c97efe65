"""Evaluation of models whose prompts say more than a row of positions: answers as `VideoQA`'s."""

import json

import numpy as np
import pytest
import torch

from cacovid.evaluation import answers
from cacovid.evaluation.answers import Answerer, Request
from cacovid.evaluation.processes import Processes
from cacovid.evaluation.session import EvaluationRun
from cacovid.models.processing import load_processor
from cacovid.train.data import Samples, TrainingSample
from cacovid.train.encoding import SampleEncoder
from cacovid.train.rewards import freeze
from cacovid.types import Selection
from tests.models.families import FAMILIES, make_tokenizer
from tests.models.test_family_processing import (  # noqa: F401
    video,
    without_torchvision,
    write_files,
)


def clip_of(sample):
    return np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8), None


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_answers_are_those_of_video_qa(name, tmp_path, video):  # noqa: F811
    from cacovid import VideoQA

    family = next(family for family in FAMILIES if family.name == name)
    family.make_model(make_tokenizer()).save_pretrained(tmp_path)
    write_files(tmp_path, family)
    (tmp_path / "cacovid.json").write_text(json.dumps({"max_frames": 4, "fps": 8.0}))
    qa = VideoQA.from_pretrained(tmp_path, device="cpu")
    questions = ("what colour is the first thing ?", "which is last ?")
    samples = Samples(
        tuple(
            TrainingSample(str(n), text, "red", "exact", video=video, worded=True)
            for n, text in enumerate(questions)
        )
    )
    run = EvaluationRun(qa, samples, ("uniform", "attention:1:question"), (0.25,), timed=1)
    run.prepare()
    found = run._evaluator().run(samples, timed=1)
    for n, text in enumerate(questions):
        full, *rows = found[str(n)].replies
        assert full.tokens == rows[0].tokens * 4 > 0
        for method, reply in zip(("uniform", "attention:1:question"), rows, strict=True):
            asked = qa.ask(video, text, 0.25, method=method, max_new_tokens=2)
            assert reply.answer == asked.text and reply.tokens == asked.tokens["kept"]
    assert len(found["0"].seconds) == 3 and not found["1"].seconds
    comparison = run.run(Processes())
    assert comparison.conditions[1].tokens == [r.replies[1].tokens for r in found.values()]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_batches_say_what_the_adapters_prompts_say_one_by_one(name, tmp_path, monkeypatch):
    """Positions of three axes, features for later layers, and embeddings of a merging method."""
    family = next(family for family in FAMILIES if family.name == name)
    write_files(tmp_path, family)
    model = freeze(family.make_model(make_tokenizer()))
    processor = load_processor(tmp_path)
    encoder = SampleEncoder(model, processor, clip_of, cached_videos=1)
    letters = {"problem_type": "multiple choice", "options": ("A . red", "B . green")}
    requests = []
    for number, (text, kind) in enumerate(
        (
            ("what colour is the first thing ?", {"problem_type": "exact"}),
            ("which is last ? A . red B . green", letters),
        )
    ):
        sample = TrainingSample(str(number), text, "A", video="clip", worded=True, **kind)
        prepared = encoder(sample)
        grid, rows = prepared.prompt.grid, prepared.prompt.video_embeds
        generator = torch.Generator().manual_seed(number)
        for count in (grid.num_tokens, 1, 3, 5, 7, 7, 9):
            order = torch.randperm(grid.num_tokens, generator=generator)
            keep = order[:count].sort().values
            requests.append(Request(prepared, Selection(keep, grid, (count,))))
        merged = torch.roll(rows, 1, 0)[keep]
        requests.append(Request(prepared, Selection(keep, grid, (count,), merged)))
    answerer = Answerer(model, processor.tokenizer, 4)
    calls = []
    count_call = model.register_forward_pre_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(answerer, "_longest", lambda sample: 4)
    batched = answerer(requests)
    in_batches = len(calls)
    monkeypatch.setattr(answers, "_packs", lambda request: False)
    assert answerer(requests) == batched
    count_call.remove()
    assert in_batches < (len(calls) - in_batches) / 2
    assert len({reply.answer for reply in batched}) > 3  # the test could tell
