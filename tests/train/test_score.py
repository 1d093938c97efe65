"""SCORE: advantages by hand, the target's cross-entropy, learning, and the curriculum."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest
import torch

from cacovid import SurpriseConfig, SurprisePolicy
from cacovid.errors import InvalidInputError
from cacovid.models.inputs import video_inputs
from cacovid.train.advantages import split_advantages
from cacovid.train.curriculum import Curriculum, Stage
from cacovid.train.data import Samples, embedded_samples
from cacovid.train.rewards import LocalReward, TargetTold
from cacovid.train.score import SCORE, SCORESettings, with_a_token
from cacovid.train.settings import TrainerSettings
from cacovid.train.trainers import SCORETrainer
from cacovid.train.wording import word_problem
from cacovid.types import Scores


def test_advantages_by_hand():
    surplus = torch.tensor([0.3, -0.1, 0.1, 0.2, 0.0])
    sparsity = torch.tensor([0.5, 0.9, 0.7, 0.6, 0.2])
    std = math.sqrt((0.1**2 + 0.1**2 + 0.0) / 2)  # of 0.5, 0.7 and 0.6
    got = split_advantages(surplus, sparsity, penalty_weight=0.5)
    expected = [-0.1 / (std + 1e-4), -0.45, 0.1 / (std + 1e-4), 0.0, -0.1]
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    got = split_advantages(surplus, sparsity, reading="surplus")
    r = torch.tensor([0.15, 0.07, 0.12])
    own = (r - r.mean()) / (r.std() + 1e-4)
    expected = [float(own[0]), -0.09, float(own[1]), float(own[2]), 0.0]
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    for reading in ("sparsity", "surplus"):
        one = split_advantages(torch.tensor([0.5, -0.5]), torch.tensor([0.4, 0.8]), reading=reading)
        assert one.tolist() == [0.0, pytest.approx(-0.8 if reading == "sparsity" else -0.4)]
    alike = split_advantages(torch.ones(3), torch.full((3,), 0.5))
    assert alike.tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(InvalidInputError, match="reading is 'third'"):
        split_advantages(surplus, sparsity, reading="third")
    with pytest.raises(InvalidInputError, match="do not fit"):
        split_advantages(surplus, sparsity[:2])


@pytest.mark.parametrize("reading", ["sparsity", "surplus"])
def test_safe_rollouts_that_are_alike_have_no_advantage(reading):
    for value in (0.9, 0.7, 1 / 3, 0.123):  # their mean is not always the value itself
        for count in (3, 7, 16):
            surplus = torch.full((count + 1,), 0.3)
            surplus[-1] = -1.0
            got = split_advantages(surplus, torch.full((count + 1,), value), reading=reading)
            assert not got[:-1].any() and got[-1] < 0


def test_rollouts_that_are_alike_are_told(monkeypatch):
    one = torch.rand(30, generator=torch.Generator().manual_seed(0)) < 0.3
    monkeypatch.setattr("cacovid.ops.bernoulli_sample", lambda *_, **__: one.repeat(7, 1))
    for tokens, safe in ((one, 1.0), (~one, 0.0)):
        objective = SCORE(SeesTokens(tokens=tokens), SCORESettings(rollouts=7))
        progress = objective.begin(None, seed=0)
        metrics = objective.update(Scores(torch.zeros(30, requires_grad=True)), progress).metrics
        assert metrics["zero_variance"] == 1.0 and metrics["safe"] == safe


@pytest.mark.parametrize("words", ["red", "red star and blue ring ."])
def test_the_target_s_cross_entropy_is_the_model_s_own(model, encoder, samples, words):
    """From all tokens it is the loss that the model computes from ids, pixels and labels."""
    sample = dataclasses.replace(
        next(s for s in samples if not s.options), solution=words, problem_type="free-form"
    )
    prepared = encoder(sample)
    frames = encoder.read_frames(sample)
    inputs = video_inputs(model, encoder.processor, frames, word_problem(sample))
    tokenizer = encoder.processor.tokenizer
    ids = tokenizer(words, add_special_tokens=False, return_tensors="pt").input_ids
    joined = torch.cat((inputs["input_ids"], ids), dim=1)
    labels = joined.clone()
    labels[:, : -ids.shape[1]] = -100
    with torch.no_grad():
        loss = model(
            input_ids=joined,
            attention_mask=torch.ones_like(joined),
            pixel_values_videos=inputs["pixel_values_videos"],
            labels=labels,
        ).loss
    masks = torch.rand((4, 576), generator=torch.Generator().manual_seed(0)) < 0.3
    masks[1] = True
    told = LocalReward(encoder).read_target(prepared, masks)
    assert float(told.cross_entropy[1]) == pytest.approx(float(loss), rel=1e-4)
    for which in (0, 2, 3):  # a mask alone tells what it tells in the batch
        alone = LocalReward(encoder, batch_tokens=10).read_target(prepared, masks[which][None])
        torch.testing.assert_close(alone.cross_entropy[0], told.cross_entropy[which])
    assert len(set(told.cross_entropy.tolist())) > 1


def test_targets_that_cannot_be_read(encoder, samples):
    prepared = encoder(dataclasses.replace(samples[0], problem_type="free-form", solution=" "))
    with pytest.raises(InvalidInputError, match="has no token"):
        LocalReward(encoder).read_target(prepared, torch.ones(1, 576, dtype=torch.bool))


class SeesTokens:
    """The answer costs 2 nats without one of some tokens, else nothing."""

    def __init__(self, encoder=None, tokens=slice(252, 270)):
        self.prepare = encoder
        self.tokens = tokens
        self.groups = []

    def read_target(self, prepared, rollouts):
        self.groups.append(len(rollouts))
        hit = rollouts[:, self.tokens].any(dim=1)
        return TargetTold(torch.where(hit, 0.0, 2.0), hit.float())


def test_the_objective_finds_the_tokens_that_count():
    """Scores of single tokens, without a network: one that counts is kept, all else dropped."""
    logits = torch.zeros(64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    reward = SeesTokens(tokens=slice(20, 24))
    objective = SCORE(reward, SCORESettings(rollouts=16))
    progress = objective.begin(None, seed=0)
    kept = []
    for _ in range(200):
        update = objective.update(Scores(logits), progress)
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
        kept.append(update.metrics["kept"])
    p = torch.sigmoid(logits.detach())
    assert reward.groups == [17] + [16] * 199  # one forward each, the base in the first
    assert kept[0] > 0.4 and kept[-1] < 0.06
    assert float(p[20:24].max()) > 0.9
    assert max(float(p[:20].max()), float(p[24:].max())) < 0.1
    assert update.metrics["safe"] > 0.8


@pytest.mark.parametrize("settings", [{}, {"reading": "surplus", "spread_weight": 0.01}])
def test_an_update_is_the_formula(settings):
    torch.manual_seed(0)
    logits = torch.randn(576, requires_grad=True)
    objective = SCORE(SeesTokens(), SCORESettings(rollouts=5, margin=0.1, **settings))
    from cacovid import ops

    masks = ops.bernoulli_sample(logits.detach(), 5, seed=9, offset=0)
    hit = masks[:, 252:270].any(dim=1)
    surplus = torch.where(hit, 0.1, -1.9)
    advantage = split_advantages(
        surplus, 1.0 - masks.float().mean(1), reading=settings.get("reading", "sparsity")
    )
    expected = ops.reinforce_loss(logits, masks, advantage)
    expected = expected + settings.get("spread_weight", 0.0) * logits.square().mean()
    update = objective.update(Scores(logits), objective.begin(None, seed=9))
    torch.testing.assert_close(update.loss, expected)


def test_a_mask_without_tokens_gets_the_best_one():
    masks = torch.tensor([[False, False, False], [True, False, False]])
    fixed, share = with_a_token(masks, torch.tensor([0.1, 0.3, 0.2]))
    assert fixed.tolist() == [[False, True, False], [True, False, False]] and share == 0.5


def test_wrong_settings():
    for values, message in (
        ({"rollouts": 1}, "rollouts is 1"),
        ({"updates": 0}, "updates is 0"),
        ({"margin": -0.1}, r"margin is -0\.1"),
        ({"reading": "other"}, "reading is 'other'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            SCORESettings(**values)


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return SurprisePolicy(SurpriseConfig(hidden_size=192, width=16, inner_width=8))


def curriculum(samples):
    other = embedded_samples("train", 6, scenes=1, per_scene=3, stills=2)
    return Curriculum([Stage(other, 2, "stills"), Stage(Samples(samples.kept[:4]), 3, "videos")])


def trainer(policy, encoder, stages, folder, **settings):
    values = {
        "steps": 5, "learning_rate": 1e-3, "checkpoint_every": 1, "log_every": 1, "seed": 3,
    } | settings  # fmt: skip
    own = SCORESettings(rollouts=4)
    return SCORETrainer(
        policy, SeesTokens(encoder), stages, TrainerSettings(**values), folder, own
    )  # fmt: skip


def test_stages_come_one_after_another(policy, encoder, samples, tmp_path):
    stages = curriculum(samples)
    assert stages.steps == 5 and [stages.stage_of(s) for s in range(6)] == [0, 0, 1, 1, 1, 1]
    first = [stages.at(place, 2, seed=3).id for place in range(4)]
    later = [stages.at(place, 2, seed=3).id for place in range(4, 10)]
    assert all(name.startswith("stills-2/train/6/0/") for name in first)
    assert set(later) == {s.id for s in samples.kept[:4]}  # all four, then a new epoch
    assert len(stages.samples) == 7
    run = trainer(policy, encoder, stages, tmp_path)
    run.train()
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["stage"] for entry in entries] == [1, 1, 2, 2, 2]
    assert {"kept", "safe", "surplus", "emptied", "zero_variance"} <= set(entries[0])


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_run_resumed_beside_the_boundary_ends_with_the_same_bits(
    policy, encoder, samples, tmp_path, stop_at
):
    other = copy.deepcopy(policy)
    stages = curriculum(samples)
    trainer(policy, encoder, stages, tmp_path / "through").train()
    trainer(other, encoder, stages, tmp_path / "stopped").train(last=stop_at)
    fresh = SurprisePolicy(other.config)
    again = trainer(fresh, encoder, stages, tmp_path / "stopped")
    assert again.resume() == stop_at
    again.train(first=stop_at)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("through", "stopped")]
    assert logs[0] == logs[1]


def test_stages_that_do_not_fit(policy, encoder, samples, tmp_path):
    stages = curriculum(samples)
    with pytest.raises(InvalidInputError, match="stages have 5 steps and the settings 9"):
        trainer(policy, encoder, stages, tmp_path, steps=9)
    trainer(policy, encoder, stages, tmp_path).train(last=1)
    moved = Curriculum(
        [dataclasses.replace(s, steps=n) for s, n in zip(stages.stages, (3, 2), strict=True)]
    )
    with pytest.raises(InvalidInputError, match=r"stages was \[2, 3\] and is now \[3, 2\]"):
        trainer(policy, encoder, moved, tmp_path).resume()
    with pytest.raises(InvalidInputError, match="at least one stage"):
        Curriculum([])
    with pytest.raises(InvalidInputError, match=r"stage 'x': there is no sample"):
        Curriculum([Stage(Samples(()), 1, "x")])
    with pytest.raises(InvalidInputError, match="steps is 0"):
        Curriculum([Stage(samples, 0)])


def test_configurations_of_stages():
    from cacovid.train.config import DataSection, TrainConfig, build
    from cacovid.train.run import read_curriculum, read_data

    stages = [{"steps": 2, "data": {"scenes": 1, "per_scene": 2, "stills": 2}}, {"steps": 3}]
    config = build(TrainConfig, {"output": "x", "stages": stages, "data": {"fps": 2.0}}, "run")
    assert config.training.steps == 5 and config.data.fps == 2.0
    small = dataclasses.replace(config, stages=config.stages[:1])
    assert small.training.steps == 2
    found = read_curriculum(small, Samples(()))
    assert [s.scene.stills for s in found.samples] == [2, 2] and found.stages[0].name == "stage 1"
    for values, message in (
        ({"stages": stages, "data": {"scenes": 3}}, "data and stages are both given"),
        ({"stages": [{"steps": 1, "data": {"fps": 2.0}}]}, "stage 1 has max_frames or fps"),
        ({"stages": [{"data": {}}]}, "'steps' is missing"),
        ({"stages": {"steps": 1}}, "expected a list"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            build(TrainConfig, {"output": "x", **values}, "run")
    for section, message in (
        (DataSection(images="absent"), "no folder of images 'absent'"),
        (DataSection(images="a", file="b"), "both file and images"),
        (DataSection(stills=-1), "stills is -1"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            read_data(section)
