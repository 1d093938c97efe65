"""The model `cacovid` of lmms-eval: what it reads of a task, and a real run where that is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest

from cacovid.engines.lmms_eval import NAME, PrunedChat, _generation, _read_messages, manifest
from cacovid.errors import InvalidInputError

ROOT = Path(__file__).resolve().parents[2]

TEXT = {"type": "text", "text": "what ?"}
CLIP = {"type": "video", "url": "clip.mp4", "start_time": None, "end_time": None}


def test_a_conversation_is_read_with_its_video_and_question():
    system = {"role": "system", "content": "be brief"}
    user = {"role": "user", "content": [CLIP, TEXT, {"type": "text", "text": "A. red"}]}
    conversation, video, question = _read_messages([system, user], "task 0")
    assert video == "clip.mp4" and question == "what ?\nA. red"
    assert conversation[0]["content"] == [{"type": "text", "text": "be brief"}]
    assert [part["type"] for part in conversation[1]["content"]] == ["video", "text", "text"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([TEXT], "0 videos"),
        ([CLIP, CLIP, TEXT], "2 videos"),
        ([{"type": "image", "url": None}, TEXT], "an image|a image"),
        ([{**CLIP, "end_time": 3.0}, TEXT], "a stretch of a video"),
    ],
)
def test_what_is_not_taken_is_told(content, words):
    with pytest.raises(InvalidInputError, match=f"task 3: .*({words})"):
        _read_messages([{"role": "user", "content": content}], "task 3")


def test_settings_of_generation():
    assert _generation({"temperature": 0, "until": ["\n"], "max_new_tokens": 4}, "t") == {
        "max_new_tokens": 4, "num_beams": 1, "do_sample": False,
    }  # fmt: skip
    assert _generation({"temperature": 0.5, "do_sample": True}, "t")["temperature"] == 0.5
    with pytest.raises(InvalidInputError, match="no_such"):
        _generation({"no_such": 1}, "t")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"no_such": 1}, "holds no_such"),
        ({"policy": "p", "method": "m"}, "both choose"),
        ({"batch_size": 4}, "batch_size is 4"),
    ],
)
def test_settings_of_the_model_that_cannot_be(given, words):
    with pytest.raises(InvalidInputError, match=words):
        PrunedChat(**given)


def test_answers_are_those_of_video_qa(random_qa, tmp_path, monkeypatch):
    from cacovid import VideoQA
    from cacovid.synthetic import make_scene

    clip = make_scene("test", 0, 0).write(tmp_path / "clip.mp4")
    monkeypatch.setattr(VideoQA, "from_pretrained", lambda *given: random_qa)
    with pytest.raises(InvalidInputError, match="no retention is given"):
        PrunedChat()
    model = PrunedChat(retention="0.1")
    cached = []
    model.task_dict = {"task": {"test": [{"text": "what colour is the circle ?"}]}}
    model.cache_hook = SimpleNamespace(add_partial=lambda *given: cached.append(given))

    def messages(doc):
        content = [{**CLIP, "url": str(clip)}, {"type": "text", "text": doc["text"]}]
        return [{"role": "user", "content": content}]

    settings = {"max_new_tokens": 3, "temperature": 0}
    request = SimpleNamespace(args=("", messages, settings, 0, "task", "test"))
    (said,) = model.generate_until([request])
    asked = random_qa.ask(clip, "what colour is the circle ?", 0.1, max_new_tokens=3)
    assert said == asked.text and model.kept_tokens == 57 and cached[0][2] == said
    stop = said.split()[-1]
    args = ("", messages, {**settings, "until": [stop]}, 0, "task", "test")
    (cut,) = model.generate_until([SimpleNamespace(args=args)])
    assert cut == said[: said.index(stop)] != said
    for refused in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="task"):
            refused([])


TASK = """
task: cacovid_local
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_visual: !function local.doc_to_visual
doc_to_text: !function local.doc_to_text
doc_to_target: answer
process_results: !function local.process_results
generation_kwargs:
  max_new_tokens: 4
  temperature: 0
  do_sample: false
metric_list:
  - metric: right
    aggregation: !function local.mean
    higher_is_better: true
metadata:
  - version: 0.0
"""

FUNCTIONS = """
def doc_to_visual(doc):
    return [doc["video"]]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    return {"right": float(results[0].strip() == doc["answer"])}


def mean(values):
    return sum(values) / len(values)
"""


@pytest.mark.timeout(1800)
def test_a_real_run(tmp_path):
    """`lmms_eval --model cacovid` on a task of three generated videos, against `VideoQA`."""
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test-lmms")
    if NAME not in {point.name for point in entry_points(group="lmms_eval.models")}:
        pytest.skip("cacovid is installed here without its entry point: make test-lmms")
    import numpy as np

    import cacovid
    from cacovid.synthetic import make_scene, sample_questions

    assert manifest().model_id == NAME
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = []
    for index in range(3):
        scene = make_scene("validation", 31, index)
        path = scene.write(tasks / f"{index}.mp4")
        (question,) = sample_questions(scene, 1, np.random.default_rng(index))
        rows.append({"question": question.text, "answer": question.answer, "video": str(path)})
    file = tasks / "questions.json"
    file.write_text(json.dumps(rows))
    (tasks / "local.py").write_text(FUNCTIONS)
    (tasks / "cacovid_local.yaml").write_text(TASK.format(file=file))
    done = subprocess.run(
        [
            sys.executable, "-m", "lmms_eval", "--model", NAME, "--model_args",
            "pretrained=tiny,method=uniform,retention=0.2", "--tasks", "cacovid_local",
            "--include_path", str(tasks), "--batch_size", "1", "--device", "cpu",
            "--output_path", str(tmp_path / "out"), "--log_samples",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=1500, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"),
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    written = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    results = [path for path in written if path.name.endswith("results.json")]
    samples = [path for path in written if path.name.endswith("samples_cacovid_local.jsonl")]
    assert len(results) == len(samples) == 1, (written, done.stdout[-3000:], done.stderr[-3000:])
    said = {}
    for line in map(json.loads, samples[0].read_text().splitlines()):
        said[line["doc_id"]] = line["filtered_resps"]
    qa = cacovid.VideoQA.from_pretrained("tiny", device="cpu")
    wanted = [
        qa.ask(r["video"], r["question"], 0.2, method="uniform", max_new_tokens=4).text
        for r in rows
    ]
    flat = {n: v[0] if isinstance(v, list) else v for n, v in said.items()}
    assert [flat[n] for n in range(3)] == wanted
    right = sum(a == r["answer"] for a, r in zip(wanted, rows, strict=True)) / 3
    found = json.loads(results[0].read_text())["results"]["cacovid_local"]
    assert found["right,none"] == pytest.approx(right)
