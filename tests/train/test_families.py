"""Training on the families whose prompts say more than a row of positions (and on the others)."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from cacovid import SelfAttentionPolicy, cli, load_policy
from cacovid.models import adapter_for, running
from cacovid.models.processing import load_processor
from cacovid.train.data import TrainingSample
from cacovid.train.encoding import SampleEncoder
from cacovid.train.rewards import LocalReward, freeze
from cacovid.types import Selection
from tests.models.families import FAMILIES, make_tokenizer
from tests.models.test_family_processing import (  # noqa: F401
    video,
    without_torchvision,
    write_files,
)


def clip_of(sample):
    """Frames of a video that hang on its name alone, and nothing told of a file."""
    rng = np.random.default_rng(len(sample.video_key))
    return rng.integers(0, 256, (4, 48, 64, 3), dtype=np.uint8), None


def sample(number, text, solution="red", clip="clip"):
    return TrainingSample(str(number), text, solution, "exact", video=clip, worded=True)


@pytest.fixture(scope="module", params=FAMILIES, ids=repr)
def encoder(request, tmp_path_factory):
    family = request.param
    folder = tmp_path_factory.mktemp(family.name)
    write_files(folder, family)
    model = freeze(family.make_model(make_tokenizer()))
    return SampleEncoder(model, load_processor(folder), clip_of, cached_videos=1)


def test_a_further_question_is_laid_out_as_if_it_were_the_first(encoder):
    """Timestamps, markers, separators: whatever a family's processor writes."""
    reads = []

    def read(one):
        reads.append(one.id)
        return clip_of(one)

    first = sample(1, "what colour is the first thing ?")
    second = sample(2, "which is last ? A . red B . green")
    own = SampleEncoder(encoder.model, encoder.processor, read, cached_videos=1)
    own(first)
    again = own(second)
    fresh = SampleEncoder(encoder.model, encoder.processor, clip_of, cached_videos=0)(second)
    assert reads == ["1"]
    assert torch.equal(again.embedded.input_ids, fresh.embedded.input_ids)
    for name in ("embeds", "position_ids", "video_index", "question_index"):
        assert torch.equal(getattr(again.prompt, name), getattr(fresh.prompt, name)), name
    assert again.prompt.grid == fresh.prompt.grid
    words = encoder.processor.tokenizer(second.problem).input_ids
    assert again.prompt.question_index.numel() == len(words)
    other = sample(3, "what ?", clip="other clip")
    own(other)
    own(first)
    assert reads == ["1", "3", "1"]


def test_answers_of_rollouts_are_those_of_the_adapters_prompts(encoder):
    model, processor = encoder.model, encoder.processor
    asked = sample(1, "what colour is the first thing ?")
    prepared = encoder(asked)
    tokens = prepared.prompt.grid.num_tokens
    masks = torch.rand((5, tokens), generator=torch.Generator().manual_seed(1)) < 0.3
    masks[0], masks[:, 0] = True, True
    texts, chances = [], []
    for mask in masks:
        keep = mask.nonzero().flatten()
        selection = Selection(keep, prepared.prompt.grid, (len(keep),))
        pruned = adapter_for(model).prune(prepared.embedded, selection)
        with running(model):
            out = model.generate(
                **pruned, max_new_tokens=4, do_sample=False, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        new = out.sequences[0, pruned["input_ids"].shape[1] :]
        texts.append(processor.tokenizer.decode(new, skip_special_tokens=True))
        chances.append(torch.stack(out.logits, 1)[0].float().log_softmax(-1))
    assert len(set(texts)) > 1
    # The likeliest words of one rollout are the target: of all its steps, teacher-forced.
    words = chances[1].argmax(-1)
    target = sample(1, asked.problem, processor.tokenizer.decode(words[:1]))
    told = LocalReward(encoder).read_target(encoder(target), masks)
    expected = -torch.stack([one[0, words[0]] for one in chances])
    torch.testing.assert_close(told.cross_entropy, expected, rtol=1e-3, atol=1e-4)
    right = sample(1, asked.problem, texts[1])
    rewards = LocalReward(encoder, max_new_tokens=4)(encoder(right), masks)
    assert rewards.value.tolist() == [float(text == texts[1]) for text in texts]


@pytest.mark.parametrize("objective", ["cpo", "score"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_cacovid_train_on_a_checkpoint(name, objective, tmp_path, video, capsys):  # noqa: F811
    """A policy that starts as the model's layer 0 is trained by either objective, and stored."""
    family = next(family for family in FAMILIES if family.name == name)
    folder, data = tmp_path / "model", tmp_path / "data"
    model = family.make_model(make_tokenizer())
    model.save_pretrained(folder)
    write_files(folder, family)
    (folder / "cacovid.json").write_text(json.dumps({"max_frames": 4, "fps": 8.0}))
    data.mkdir()
    for file, questions in (("train", ("what ?", "which is last ?")), ("test", ("what is red ?",))):
        shutil.copy(video, data / f"{file}.mp4")
        rows = [
            {"id": text, "problem": text, "solution": "red", "problem_type": "exact",
             "path": f"{file}.mp4"} for text in questions
        ]  # fmt: skip
        (data / f"{file}.json").write_text(json.dumps(rows))
    config = {
        "output": str(tmp_path / "run"), "model": str(folder), "device": "cpu",
        "policy": {"type": "self_attention"},
        "data": {"file": str(data / "train.json")},
        "evaluation": {"file": str(data / "test.json"), "questions": 1, "retention": 0.25},
        "reward": {"kind": "log_probability", "free_text": "forced"},
        "objective": objective,
        "cpo": {"updates": 1, "ratio": {"base": 0.25},
                "rollouts": {"token_rollouts": 4, "frame_rollouts": 3}},
        "score": {"rollouts": 4},
        "training": {"steps": 2, "samples_per_step": 2, "learning_rate": 0.01, "warmup": 0.0},
    }  # fmt: skip
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config))
    assert cli.main(["train", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["before"]["questions"] == told["after"]["questions"] == 1 and not told["unreadable"]
    trained = load_policy(told["policy"], base_model=model)
    layer = model.model.language_model.layers[0].state_dict()
    start = SelfAttentionPolicy.from_language_model(model, base_model=str(folder))
    assert trained.config == start.config
    moved = {n: trained.layers[0].state_dict()[n] - layer[n] for n in layer}
    largest = max(float(change.abs().max()) for change in moved.values())
    # AdamW moves a weight by its rate at most in a step, and layers of the model by a tenth of it.
    assert 0.0 < largest < 2 * 0.001 * 1.1
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["gradient_norm"] > 0.0 and log[-1]["token_spread"] > 0.0
