"""What the tuning of `score` tries and writes, as far as it goes without a GPU."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from cacovid.kernels import configurations

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "tune_score.py"
ANY = (1, 196, 784, 1000, 1568, 2100, 6272, 12_544, 50_176, 200_704, 10**6)


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_tune_score", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_tune_score"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def device(tmp_path, monkeypatch):
    """Writes a device's file, and finds what serves a size there."""
    shutil.copy(configurations.folder() / "default.json", tmp_path)
    monkeypatch.setattr(configurations, "folder", lambda: tmp_path)
    caches = (configurations._find, configurations.read)

    def find(op, tokens, columns=128):
        return configurations._find(op, "sm_90", "Some GPU", "torch.bfloat16", columns, tokens)

    def write(content):
        (tmp_path / configurations.device_file("Some GPU")).write_text(json.dumps(content))
        for cache in caches:
            cache.cache_clear()

    monkeypatch.setattr(
        configurations, "find", lambda op, device, dtype, columns, tokens: find(op, tokens, columns)
    )
    write({})
    yield SimpleNamespace(find=find, write=write)
    for cache in caches:
        cache.cache_clear()


def test_every_size_has_a_whole_configuration_before_and_after_tuning(bench, device):
    for _ in range(2):  # the second time on what the first has written
        winners = {n: bench.default_of(n, torch.device("cuda")) for n in bench.SIZES}
        for config in winners.values():
            form = "score_fwd" if config["FUSED"] else "score_project"
            assert config.keys() >= bench.NEEDED[form]
        device.write(bench.entries(winners))
        for tokens in ANY:
            found = bench.default_of(tokens, torch.device("cuda"))
            form = "score_fwd" if found["FUSED"] else "score_project"
            assert found.keys() >= bench.NEEDED[form]
        for tokens in bench.SIZES:
            assert bench.default_of(tokens, torch.device("cuda")) == winners[tokens]


def test_a_winner_serves_its_size_and_none_far_from_it(bench, device):
    """The fused form that wins at 6,272 tokens does not take small sizes from the splits."""
    wins = {n: bench.candidates(n, True)[0] for n in bench.SIZES}
    fused = [n for n in bench.SIZES if wins[n]["FUSED"]]
    device.write(bench.entries(wins))
    for tokens in ANY:
        nearest = min(bench.SIZES, key=lambda n: max(n / tokens, tokens / n))
        expected = wins[nearest]
        assert bool(device.find("score_fwd", tokens)["FUSED"]) == (nearest in fused)
        assert bench.default_of(tokens, torch.device("cuda")) == expected
    # Inter-frame columns and wider folds go on as before where nothing was tuned for them.
    default = configurations.read("default.json")["sm_90"]["score_project"]
    assert device.find("score_project", 6272, 192)["BLOCK_N"] == default[2]["BLOCK_N"]


def test_splits_are_tried_first_where_tokens_are_few(bench):
    everything = bench.candidates(bench.SPLIT_UP_TO, True)
    for tokens in bench.SIZES:
        tried = bench.candidates(tokens, True)
        assert all(config in everything for config in tried)  # compiled beforehand
        assert bool(tried[0]["FUSED"]) == (tokens > bench.SPLIT_UP_TO // 2)
        assert any(not c["FUSED"] for c in tried) == (tokens <= bench.SPLIT_UP_TO)
        for config in tried:
            form = "score_fwd" if config["FUSED"] else "score_project"
            assert config.keys() == bench.NEEDED[form] and config["DESCRIPTORS"] == 1
    assert bench.candidates(784, False)[0]["DESCRIPTORS"] == 0


def test_entries_that_no_launch_could_read_are_not_written(bench):
    wins = {n: bench.candidates(n, True)[0] for n in bench.SIZES}
    for broken in ({"FUSED": 0}, {"FUSED": 1, "BLOCK_N": 64}, {**wins[784], "SPLIT_K": None}):
        with pytest.raises(ValueError, match=r"lacks .*BLOCK_|SPLIT_K are no integers"):
            bench.entries({**wins, 784: broken})
    made = bench.entries(wins)
    with pytest.raises(ValueError, match="no entry of its size in score_project"):
        bench.check({**made, "score_project": made["score_project"][1:]})


def test_files_of_devices_can_be_read(bench):
    for path in configurations.folder().glob("*.json"):
        if path.name != "default.json":
            bench.check(json.loads(path.read_text()))


def test_other_scores_and_nan_are_no_candidates(bench):
    generator = torch.Generator().manual_seed(0)
    token, frame = (torch.randn(n, generator=generator) for n in (100, 20))
    expected = SimpleNamespace(token=token, frame=frame)
    nan = frame.clone()
    nan[3] = float("nan")
    assert bench.same_scores(SimpleNamespace(token=token + 1e-3, frame=frame), expected)
    for wrong in (frame + 0.1, nan):
        assert not bench.same_scores(SimpleNamespace(token=token, frame=wrong), expected)
    assert not bench.same_scores(SimpleNamespace(token=-token, frame=frame), expected)
