"""The ways that ops are measured against do the same work; times, files and the command."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import time
from types import SimpleNamespace

import pytest
import torch

from cacovid import Grid, cli, ops, reference
from cacovid.benchmark import batched, ceilings, plots, published, report, training
from cacovid.benchmark.__main__ import main as plain_main
from cacovid.benchmark.cases import Case, Provider, Setting, WrongResult, agree
from cacovid.benchmark.measure import NAMES
from cacovid.benchmark.ops import MAKERS, cases
from cacovid.benchmark.run import run_case
from cacovid.benchmark.timing import (
    LONG,
    LONGEST_REPLAY,
    graph_lengths,
    graph_sampler,
    host_clock,
    host_sampler,
    interleaved,
)
from cacovid.benchmark.training import TrainingSpeed
from cacovid.commands.bench import OPS
from cacovid.errors import InvalidInputError
from cacovid.reference.ocss import ocss_plan, subspace_cap
from cacovid.reference.select_tokens import select_plan
from cacovid.testing.laws import chi_square_p_value, without_replacement

SETTING = Setting(torch.device("cpu"), torch.float32, compiled=False)
LIMITS = ceilings.Ceilings(copy=1e10, read=1e10, matmul=1e11, empty=0.0)


@pytest.mark.parametrize("retention", [0.1, 0.37, 1.0])
@pytest.mark.parametrize("size", [(8, 14, 14), (32, 3, 5), (1, 7, 9), (63, 2, 8)])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_selections_in_loops_and_batched_are_the_ops(size, retention, spread):
    grid = Grid([size])
    (plan,) = select_plan(grid, retention)
    if plan.budget < plan.frames:
        pytest.skip("the budget is below one token for each frame")
    for seed in range(5):
        torch.manual_seed(seed)
        tokens, frames = torch.randn(grid.num_tokens), torch.randn(plan.frames).pow(3) * spread
        wanted = ops.select_tokens(tokens, frames, grid, retention)
        rows = tokens.view(plan.frames, plan.tokens)
        assert torch.equal(batched.select_tokens(rows, frames, plan), wanted)
        assert torch.equal(published.select_tokens(rows, frames, plan), wanted)


@pytest.mark.parametrize(("way", "rollouts"), [("batched", 20_000), ("published", 4_000)])
def test_samplers_draw_by_the_law(way, rollouts):
    torch.manual_seed(0)
    ratio, scores = 0.17, torch.tensor([[2.0, -1.0, 0.5, 0.1, 1.2, -0.3, 0.0, 0.7, -2.0, 0.4]])
    (plan,) = ocss_plan(Grid([(1, 2, 5)]), ratio, 2.0, None)
    law = reference.subspaces(scores[0], ratio)
    assert (plan.subspaces, plan.keep) == (2, 2)
    cap = subspace_cap(plan.subspaces, None)
    if way == "batched":
        drawn = batched.ocss_sample(scores, plan, rollouts + 1, cap).tolist()
    else:
        masks = published.ocss_sample(scores, plan, rollouts + 1, cap)
        drawn = [row.nonzero().flatten().tolist() for row in masks]
    assert drawn[0] == sorted(scores[0].topk(2).indices.tolist())  # the greedy one
    expected = dict.fromkeys(itertools.combinations(range(10), 2), 0.0)
    for chance, weights in zip(law.probabilities.tolist(), law.weights, strict=True):
        members = weights.nonzero().flatten().tolist()
        for places, p in without_replacement(weights[members].tolist(), 2).items():
            expected[tuple(sorted(members[i] for i in places))] += chance * p
    counts = dict.fromkeys(expected, 0)
    for row in drawn[1:]:
        counts[tuple(row)] += 1
    possible = [key for key, p in expected.items() if p > 0]
    assert sum(counts[key] for key in possible) == rollouts
    p_value = chi_square_p_value(
        torch.tensor([counts[key] for key in possible]),
        torch.tensor([expected[key] * rollouts for key in possible]),
    )
    assert p_value > 1e-4


def test_rollouts_of_small_subspaces_follow_the_ranks():
    """A sub-space of too few members is filled up by the ranks that follow, then those before."""
    torch.manual_seed(0)
    scores = torch.randn(3, 12)
    (plan,) = ocss_plan(Grid([(3, 3, 4)]), 0.5, 0.25, None)
    assert plan.keep == 6 and plan.subspaces == 8  # of one or two members
    cap = subspace_cap(plan.subspaces, None)
    masks = published.ocss_sample(scores, plan, 60, cap).view(60, 3, 12)
    drawn = batched.ocss_sample(scores, plan, 60, cap).view(60, 3, plan.keep).long()
    for frame in range(3):
        order = scores[frame].argsort(descending=True).tolist()
        starts = [*plan.starts][:8]
        possible = {
            tuple(sorted([*order[start:], *reversed(order[:start])][:6])) for start in starts
        }
        looped = {tuple(mask.nonzero().flatten().tolist()) for mask in masks[:, frame]}
        at_once = {tuple((row - 12 * frame).tolist()) for row in drawn[:, frame]}
        assert looped <= possible and at_once <= possible
        assert len(looped) > 2 and len(at_once) > 2


def test_published_farthest_points_are_the_ops():
    rows = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(published.farthest_point(rows, 40), ops.farthest_point(rows, 40))


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_op_is_measured_against_ways_that_agree(name):
    case = MAKERS[name](392, 64, SETTING)
    rows = run_case(case, SETTING, LIMITS, seconds=0.01)
    assert {row.provider.role for row in rows} >= {"ours"} and len(rows) >= 2
    for row in rows:
        assert row.times.p20 <= row.times.median <= row.times.p80
        assert row.times.clock == host_clock(SETTING.device)[0] and row.calls > 0 and row.floor > 0
        assert (row.ratio == 1.0) == (row.provider.role == "ours") or row.ratio > 0
        if row.provider.role == "published" and name in ("ocss_sample", "select_tokens"):
            assert row.waits >= 2  # a wait for each frame at least
        if row.provider.role == "ours" and name in ("select_tokens", "gather"):
            assert row.waits == 0


def test_names_of_the_command_are_those_of_the_cases():
    assert NAMES == OPS


def test_cases_leave_out_sizes_that_take_minutes():
    made = [
        make() for make in cases(("farthest_point", "gather"), (196, 6272, 12544), (8,), SETTING)
    ]
    assert [(c.op, c.tokens) for c in made] == [
        ("farthest_point", 196),
        ("gather", 196),
        ("farthest_point", 6272),
        ("gather", 6272),
        ("gather", 12544),
    ]


def test_the_layer_of_the_paper_is_left_out_at_sizes_that_take_a_second_for_each_run():
    on_gpu = Setting(torch.device("cuda"), torch.bfloat16, compiled=False)
    sizes = (6272, 12_544, 50_176, 200_704)
    made = list(cases(("self_attention", "gather"), sizes, (3584,), on_gpu))
    assert len(made) == 2 + 4


def test_nothing_is_timed_where_results_differ():
    def timed(_):
        timed.runs += 1
        return torch.zeros(3)

    timed.runs = 0
    case = Case(
        "select_tokens", 3, 0, "", lambda seed: seed,
        (Provider("a", "eager", timed), Provider("b", "ours", lambda _: torch.ones(3))),
        least_bytes=1, check=lambda results, _: agree(results, ("a", "b")),
    )  # fmt: skip
    with pytest.raises(WrongResult, match="b and a differ"):
        run_case(case, SETTING, LIMITS, seconds=0.01)
    assert timed.runs == 1


def test_ways_take_turns_and_quantiles_are_of_their_own_samples():
    order = []

    def sampler(name, values):
        values = iter(values)

        def sample():
            order.append(name)
            return next(values)

        return "host", sample

    times = interleaved(
        {"a": sampler("a", [5.0, 1.0, 3.0, 2.0, 4.0]), "b": sampler("b", [9.0] * 5)}, 0.0, most=5
    )
    assert order[:2] == ["a", "b"] and order == ["a", "b"] * (len(order) // 2)
    assert times["b"].median == 9.0
    if times["a"].samples == 5:
        assert (times["a"].p20, times["a"].median, times["a"].p80) == (1.8, 3.0, 4.2)


def test_the_floor_is_the_larger_of_traffic_and_arithmetic():
    assert LIMITS.floor(10**10, 0) == 1.0
    assert LIMITS.floor(10**10, 5 * 10**11) == 5.0


def test_ceilings_of_this_machine():
    found = ceilings.measure(torch.device("cpu"), torch.float32, seconds=0.05)
    assert found.copy > 1e8 and found.read > 1e8 and found.matmul > 1e8 and found.empty == 0.0


class FakeGPU:
    """A device whose clock moves by what is run on it, and by the launch of every graph."""

    LAUNCH = 1e-5

    def __init__(self, monkeypatch):
        self.now, self.runs, self._capturing = 0.0, 0, None
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                self.at = None

            def record(self):
                self.at = gpu.now

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return (end.at - self.at) * 1e3

        class CUDAGraph:
            def __init__(self):
                self.work = []

            def replay(self):
                gpu.now += gpu.LAUNCH
                for seconds in self.work:
                    gpu.run(seconds)

        @contextlib.contextmanager
        def graph(graph, stream):
            gpu._capturing = graph
            yield
            gpu._capturing = None

        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "Event": Event, "CUDAGraph": CUDAGraph, "graph": graph, "Stream": lambda: stream,
            "current_stream": lambda: stream, "stream": lambda own: contextlib.nullcontext(),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

    def run(self, seconds):
        if self._capturing is not None:
            self._capturing.work.append(seconds)
        else:
            self.now += seconds
            self.runs += 1


@pytest.mark.parametrize("seconds", [2e-6, 3e-4, 4e-3, 6e-3, 0.85])
def test_what_takes_long_is_run_a_few_times_only(seconds, monkeypatch):
    gpu = FakeGPU(monkeypatch)
    sample = graph_sampler(gpu.run, [seconds] * 4)
    for _ in range(5):
        # The launch of the graph counts nowhere, or is nothing beside the run.
        assert sample() == pytest.approx(seconds, rel=2e-3)
    assert gpu.now < 10 * LONGEST_REPLAY or gpu.runs <= 11  # of which four warm up


def test_graphs_are_as_long_as_their_time_allows():
    assert graph_lengths(0.0) == graph_lengths(1e-5) == (LONG // 2, LONG)
    for seconds in (5e-4, 1e-3, 4.9e-3):
        short, long = graph_lengths(seconds)
        assert 2 * short == long and long >= 4 and long * seconds <= LONGEST_REPLAY
    assert graph_lengths(0.01) == (0, 1)


@pytest.fixture
def known_ceilings(monkeypatch):
    monkeypatch.setattr(ceilings, "measure", lambda device, dtype: LIMITS)


@pytest.mark.usefixtures("known_ceilings")
def test_the_command_writes_json_csv_and_pictures(capsys, tmp_path):
    sizes = ["--tokens", "196", "392", "--hidden", "64", "32", "--dtype", "float32"]
    status = cli.main(
        ["bench", "--device", "cpu", "--ops", "gather", "select_tokens", *sizes, "--seconds",
         "0.01", "--without-compile", "--json", "--csv", str(tmp_path / "out" / "f.csv"),
         "--plots", str(tmp_path / "plots"), "--commit", "abc"]
    )  # fmt: skip
    assert status == 0
    told = json.loads(capsys.readouterr().out)
    rows = told["results"]
    assert {(r["op"], r["tokens"], r["hidden"]) for r in rows} == {
        ("select_tokens", 196, 0),
        ("select_tokens", 392, 0),
        *(("gather", n, d) for n in (196, 392) for d in (64, 32)),
    }
    assert told["training"] is None and told["skipped"] == []
    assert told["environment"]["commit"] == "abc" and told["ceilings"]["copy_gb_per_s"] > 0
    with open(tmp_path / "out" / "f.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert line["provider"] == row["provider"] and float(line["median_us"]) == row["median_us"]
        assert line["torch"] == torch.__version__ and line["commit"] == "abc" and line["device"]
    pictures = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert pictures == ["gather.png", "select_tokens.png", "speed-up.png"]
    assert all((tmp_path / "plots" / name).stat().st_size > 10_000 for name in pictures)


@pytest.mark.usefixtures("known_ceilings")
def test_the_table_fits_a_terminal(capsys):
    assert cli.main(
        ["bench", "--device", "cpu", "--ops", "select_tokens", "ocss_sample", "--tokens", "196",
         "--seconds", "0.01", "--without-compile"]
    ) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "as published, in loops" in out and "cacovid" in out and "x ours" in out
    assert max(map(len, out.splitlines()[2:])) <= 80


def test_a_floor_that_is_beaten_is_told():
    row = {"op": "gather", "tokens": 196, "hidden": 8, "provider": "cacovid", "median_us": 50.0,
           "p20_us": 49.0, "p80_us": 51.0, "times_ours": 1.0, "copy_share": 2.0,
           "waits": 0}  # fmt: skip
    for floor, told in ((100.0, True), (51.0, False), (20.0, False)):
        (line,) = [text for text in report.table([{**row, "floor_us": floor}]) if "floor" in text]
        assert ("beaten" in line) == told and len(line) <= 80


@pytest.mark.usefixtures("known_ceilings")
def test_without_the_command_lines_packages(capsys, tmp_path):
    arguments = ["--device", "cpu", "--tokens", "196", "--seconds", "0.01", "--without-compile"]
    path = tmp_path / "f.csv"
    assert plain_main([*arguments, "--ops", "select_tokens", "--csv", str(path)]) == 0
    assert "as published, in loops" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) == 4
    assert plain_main([*arguments, "--ops", "gather", "--hidden", "32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["op"] == "gather"
    with pytest.raises(SystemExit):
        plain_main([*arguments, "--ops", "nosuch"])


@pytest.mark.usefixtures("known_ceilings")
def test_the_model_of_the_training_step_is_passed_on(monkeypatch):
    asked = []

    def measure(model, device, steps):
        asked.append(model)
        return TrainingSpeed(model, 576, 128, 31, 5, 1, (1.0,), 0.5, "host")

    monkeypatch.setattr(training, "measure", measure)
    assert plain_main(["--device", "cpu", "--ops", "train", "--model", "some/model"]) == 0
    assert plain_main(["--device", "cpu", "--ops", "train"]) == 0
    assert asked == ["some/model", "tiny"]


@pytest.mark.usefixtures("known_ceilings")
def test_what_fails_is_told_at_the_end_and_stops_nothing(capsys, monkeypatch):
    def broken(tokens, hidden, setting):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setitem(MAKERS, "gather", broken)
    arguments = ["--device", "cpu", "--tokens", "196", "--seconds", "0.01", "--without-compile"]
    assert plain_main([*arguments, "--ops", "gather", "select_tokens", "--hidden", "8"]) == 1
    seen = capsys.readouterr()
    assert "FAILED case 1: RuntimeError: no kernel\n" in seen.err
    assert "select_tokens, N = 196" in seen.out
    assert cli.main(["bench", *arguments, "--ops", "gather", "--hidden", "16"]) == 1
    assert "1 failed: case 1" in capsys.readouterr().err


@pytest.mark.usefixtures("known_ceilings")
def test_no_case_begins_when_the_time_is_used_up(capsys):
    arguments = ["--device", "cpu", "--tokens", "196", "--most-seconds", "0", "--json"]
    assert plain_main([*arguments, "--ops", "select_tokens", "ocss_sample"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["results"] == [] and told["skipped"] == ["2 of 2 cases: the time was used up"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ops", "nosuch"], "'nosuch' is not known; expected some of score"),
        (["--tokens", "200"], "--tokens is 200; expected frames of 196"),
        (["--hidden", "3"], "--hidden is 3"),
        (["--dtype", "int8"], "--dtype is 'int8'"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--device", "tpu"], "--device is 'tpu'; expected cpu or cuda"),
        (["--csv", "/"], "--csv: / is a folder"),
        (["--plots", __file__], "is a file; expected a folder"),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    assert cli.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_told(capsys):
    assert cli.main(["bench", "--device", "cuda"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


@pytest.mark.usefixtures("known_ceilings")
def test_a_training_step_is_measured(model_for_training, capsys):
    assert cli.main(
        ["bench", "--device", "cpu", "--ops", "train", "--quick", "--json", "--model",
         str(model_for_training)]
    ) == 0  # fmt: skip
    told = json.loads(capsys.readouterr().out)["training"]
    assert told["steps"] == 1 and told["rollouts"] == 31 and told["updates_per_step"] == 5
    assert told["steps_per_second"] > 0 and 0 < told["reward_share"] < 1 and told["h264"]


def test_a_training_step_is_measured_without_pyav(model_for_training, monkeypatch):
    from cacovid.synthetic.tiny import data

    def missing(frames):
        raise ModuleNotFoundError("No module named 'av'")

    monkeypatch.setattr(data, "through_h264", missing)
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    speed = training.measure(model_for_training, torch.device("cpu"), 1)
    assert not speed.h264 and speed.tokens == 576 and speed.rollouts == 31
    assert report.training_record(speed.to_dict())["note"].endswith("rewards, without H.264")


@pytest.fixture
def model_for_training():
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    return "tiny"


def test_pictures_of_one_size(tmp_path):
    row = {"op": "score", "provider": "cacovid", "role": "ours", "tokens": 196, "hidden": 0,
           "median_us": 3.0, "p20_us": 2.0, "p80_us": 4.0, "times_ours": 1.0, "floor_us": 1.0,
           "dtype": "float32"}  # fmt: skip
    files = plots.draw([row, {**row, "provider": "x", "role": "bare"}], "here", tmp_path)
    assert [f.name for f in files] == ["score.png", "speed-up.png"]


@pytest.mark.usefixtures("known_ceilings")
def test_figures_of_other_sizes_are_kept_where_asked(capsys, tmp_path):
    path = tmp_path / "f.csv"
    arguments = ["--device", "cpu", "--seconds", "0.01", "--without-compile", "--csv", str(path)]
    ops_of = ["--ops", "gather", "--hidden", "8", "--append", "--tokens"]
    assert plain_main([*arguments, *ops_of, "392", "--commit", "old"]) == 0
    assert plain_main([*arguments, *ops_of, "196", "588", "--commit", "old"]) == 0
    assert plain_main([*arguments, *ops_of, "392", "--commit", "new"]) == 0
    rows = report.read_csv(path)
    assert [(row["tokens"], row["commit"]) for row in rows[::3]] == [
        (196, "old"), (392, "new"), (588, "old")
    ]  # fmt: skip
    assert len(rows) == 9 and all(row["median_us"] > 0 for row in rows)
    # Nothing that the file has is measured again.
    missing = ["--ops", "gather", "--hidden", "8", "16", "--missing", "--tokens", "196", "392"]
    assert plain_main([*arguments, *missing, "--commit", "newest"]) == 0
    rows = report.read_csv(path)
    assert [(r["hidden"], r["tokens"], r["commit"]) for r in rows[::3]] == [
        (8, 196, "old"), (8, 392, "new"), (8, 588, "old"), (16, 196, "newest"), (16, 392, "newest"),
    ]  # fmt: skip
    other = ["--ops", "gather", "--hidden", "16", "--tokens", "196", "--missing"]
    assert cli.main(["bench", *arguments, *other, "--dtype", "float32"]) == 0
    assert len(report.read_csv(path)) == 15 + 3  # the file had it in bfloat16 alone
    capsys.readouterr()
    path.write_text("op,provider\ngather,cacovid\n")
    with pytest.raises(InvalidInputError, match="lacks the columns calls, clock"):
        plain_main([*arguments, *ops_of, "196"])
    for option in ("--append", "--missing"):
        assert cli.main(["bench", "--device", "cpu", option]) == 2
        assert "name it by --csv" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            plain_main(["--device", "cpu", option])
        assert "name it by --csv" in capsys.readouterr().err


@pytest.mark.usefixtures("known_ceilings")
def test_a_run_that_is_stopped_leaves_what_it_has(tmp_path, monkeypatch):
    def stopped(tokens, hidden, setting):
        raise KeyboardInterrupt

    monkeypatch.setitem(MAKERS, "gather", stopped)
    path = tmp_path / "f.csv"
    with pytest.raises(KeyboardInterrupt):
        plain_main(
            ["--device", "cpu", "--tokens", "196", "--seconds", "0.01", "--without-compile",
             "--ops", "select_tokens", "gather", "--csv", str(path)]
        )  # fmt: skip
    assert {row["op"] for row in report.read_csv(path)} == {"select_tokens"}


def test_the_training_step_has_its_line(tmp_path):
    speed = TrainingSpeed("tiny", 576, 128, 31, 5, 1, (1.0, 2.0, 4.0), 0.75, "processor")
    row = report.training_record(speed.to_dict())
    where = report.environment(torch.device("cpu"))
    report.write_csv(tmp_path / "f.csv", [row], report.ceiling_record(LIMITS), where)
    (read,) = report.read_csv(tmp_path / "f.csv")
    assert (read["op"], read["tokens"], read["hidden"]) == ("train", 576, 128)
    assert read["median_us"] == 2e6 and read["p80_us"] == 4e6 and read["samples"] == 3
    assert read["clock"] == "processor" and "0.5 steps/s, 75% rewards" in read["note"]


def test_one_thread_is_timed_by_the_processor():
    """What waits costs nothing there; several threads need the wall clock."""
    threads, device = torch.get_num_threads(), torch.device("cpu")
    try:
        torch.set_num_threads(1)
        assert host_clock(device)[0] == "processor"
        sample = host_sampler(lambda _: time.sleep(0.02), [None], device)
        assert sample() < 0.01
        torch.set_num_threads(2)
        assert host_clock(device)[0] == "host"
        assert host_sampler(lambda _: time.sleep(0.02), [None], device)() >= 0.02
    finally:
        torch.set_num_threads(threads)


def test_the_environment_names_the_machine():
    where = report.environment(torch.device("cpu"))
    assert where.device and where.torch == torch.__version__ and where.threads >= 1
