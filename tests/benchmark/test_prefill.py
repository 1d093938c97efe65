"""The bench of the prefill: what it counts, that both ways are alike, and what it writes."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "prefill.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_prefill", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_prefill"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(bench):
    torch.manual_seed(0)
    return bench.make_model(bench.SHAPES["tiny"], torch.device("cpu"), torch.float32)


def test_operations_are_those_that_torch_counts(bench, model):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    shape, length = bench.SHAPES["tiny"], 196 + bench.TEXT
    prompt = bench.make_prompt(196, shape.hidden, torch.device("cpu"), torch.float32)
    # By this kernel attention is two plain products, which are counted whole.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        bench.prefill(model, prompt.embeds, prompt.position_ids)
    hidden_half = shape.layers * 2.0 * length**2 * shape.hidden
    # The rotary table is a product too, of a few operations for each position.
    counted = counter.get_total_flops()
    assert shape.operations(length) + hidden_half == pytest.approx(counted, rel=2e-3)


@pytest.mark.parametrize("policy", ["cacovid", "score"])
def test_nothing_is_lost_but_what_is_dropped(bench, model, policy):
    """Keeping all gives the same states; keeping some gives those of a prompt of those tokens."""
    torch.manual_seed(1)
    prompt = bench.make_prompt(392, 64, torch.device("cpu"), torch.float32)
    chooser = bench.make_policy(policy, 64)
    with torch.no_grad():
        whole = bench.prefill(model, prompt.embeds, prompt.position_ids)
        embeds, positions = bench.compress(chooser, prompt, 1.0)
        assert torch.equal(embeds, prompt.embeds) and torch.equal(positions, prompt.position_ids)
        embeds, positions = bench.compress(chooser, prompt, 0.1)
        assert len(embeds) == 39 + bench.TEXT
        assert torch.equal(embeds, prompt.embeds[positions])
        short = bench.prefill(model, embeds, positions)
        bench.check_same_kernel(model, chooser, prompt)
    assert not torch.allclose(short[-1], whole[-1])


def test_two_kinds_of_attention_are_refused(bench, model, monkeypatch):
    prompt = bench.make_prompt(196, 64, torch.device("cpu"), torch.float32)
    plain = bench.prefill

    def masked(model, embeds, positions):
        if len(embeds) == 196 + bench.TEXT:
            return plain(model, embeds, positions)
        mask = torch.ones((1, len(embeds)), dtype=torch.int64)
        mask[0, 0] = 0  # one token of padding, and the mask is written down
        return model(inputs_embeds=embeds[None], attention_mask=mask, use_cache=True)

    monkeypatch.setattr(bench, "prefill", masked)
    with torch.no_grad(), pytest.raises(RuntimeError, match="attention is called in two ways"):
        bench.check_same_kernel(model, bench.make_policy("score", 64), prompt)


def test_a_run_writes_what_it_measured(bench, tmp_path, capsys):
    table = bench.main(
        ["--llm", "tiny", "--tokens", "196", "1960", "--rounds", "2", "--dtype", "float32",
         "--out", str(tmp_path)]
    )  # fmt: skip
    assert [(r["tokens"], r["retention"], r["kept"]) for r in table] == [
        (196, 1.0, 196), (196, 0.25, 49), (196, 0.1, 19), (196, 0.05, 9),
        (1960, 1.0, 1960), (1960, 0.25, 490), (1960, 0.1, 196), (1960, 0.05, 98),
    ]  # fmt: skip
    with open(tmp_path / "prefill-tiny-cpu.csv") as file:
        stored = list(csv.DictReader(file))
    assert [float(r["total_ms"]) for r in stored] == [r["total_ms"] for r in table]
    for row in table:
        assert row["prefill_ms"] > 0 and (row["compression_ms"] > 0) == (row["retention"] < 1)
        assert row["p20_ms"] <= row["total_ms"] <= row["p80_ms"]
    assert {r["speed_up"] for r in table if r["retention"] == 1.0} == {1.0}
    page = (tmp_path / "prefill-tiny-cpu.md").read_text()
    assert "On GPUs: not measured." in page and "| 1,960 | 196 (10%) |" in page
    assert (tmp_path / "prefill-tiny-cpu.png").stat().st_size > 5000
    out = capsys.readouterr().out
    assert "ratio of operations" in out
    # The kernels alone, against the prefill that keeps all.
    for row in table:
        whole = next(r for r in table if r["tokens"] == row["tokens"] and r["retention"] == 1.0)
        share = row["kernels_us"] * 1e-3 / whole["prefill_ms"]
        assert row["kernels_us"] > 0 and row["kernels_share"] == pytest.approx(share, rel=0.02)
    told = f"{table[0]['kernels_share']:.3%} of the prefill"
    assert f"{told} of 2 layers" in out and f"{told} without compression" in page


def test_without_matplotlib_there_is_no_picture_alone(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    (whole, _) = bench.main(
        ["--llm", "tiny", "--tokens", "100", "--rounds", "1", "--dtype", "float32",
         "--retention", "0.1", "--out", str(tmp_path)]
    )  # fmt: skip
    assert whole["kernels_us"] == ""  # no frames of 196
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".md"}
    assert "no picture: matplotlib is not installed" in capsys.readouterr().out


def test_where_sixteen_times_can_hold(bench):
    for name in ("0.5b", "7b"):
        shape = bench.SHAPES[name]
        least = bench.longest_without(shape, 0.1, 16.0)
        kept = least // 10
        assert bench.operations_ratio(least, kept, shape) >= 16.0
        assert bench.operations_ratio(least - 196, (least - 196) // 10, shape) < 16.0
    assert bench.longest_without(bench.SHAPES["7b"], 0.25, 17.0, most=2000) == 0


def test_wrong_options(bench):
    for arguments in (["--retention", "0"], ["--rounds", "0"], ["--llm", "70b"]):
        with pytest.raises(SystemExit):
            bench.main(arguments)
    with pytest.raises(bench.InvalidInputError, match="multiple of 196"):
        bench.make_prompt(200, 8, torch.device("cpu"), torch.float32)
