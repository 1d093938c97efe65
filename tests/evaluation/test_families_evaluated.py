"""Evaluation of models whose prompts say more than a row of positions: answers as `VideoQA`'s."""

import json

import pytest

from cacovid.evaluation.processes import Processes
from cacovid.evaluation.session import EvaluationRun
from cacovid.train.data import Samples, TrainingSample
from tests.models.families import FAMILIES, make_tokenizer
from tests.models.test_family_processing import (  # noqa: F401
    video,
    without_torchvision,
    write_files,
)


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
