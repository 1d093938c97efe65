"""Sessions on a GPU: graphs give the ops' results, nothing waits, broken scores are told later."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cacovid import CompressionSession, Grid, Scores, ops
from cacovid.backends import available
from cacovid.errors import InvalidInputError

from .conftest import inputs_of, make_policy
from .test_session import assert_equal, expected

_CUDA = available()["cuda"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not _CUDA.available, reason=_CUDA.reason or "available"),
]

GRID = Grid([(3, 4, 5), (2, 3, 3)])


def on_device(inputs):
    return tuple(value.cuda() for value in inputs)


def wanted_on_host(policy, inputs, retention, grid=GRID):
    """In float64, so that the rounding of another device decides nothing."""
    return expected(policy, *(value.cpu() for value in inputs), grid, retention)


@pytest.mark.parametrize("kind", ["cross", "cross_without_slots", "self"])
def test_graphs_give_what_the_policy_and_the_ops_give(kind):
    policy = make_policy(kind).double()
    session = CompressionSession(policy, GRID, retention=0.2, device="cuda", cached=3)
    assert next(policy.parameters()).device.type == "cpu"  # the caller's own is not moved
    for turn in range(4):
        for length in (5, 5, 9):
            for retention in (0.2, [0.1, 0.5]):
                inputs = inputs_of(GRID, length, seed=turn, dtype=torch.float64)
                got = session(*on_device(inputs), retention=retention)
                host = tuple(value.cpu() for value in got)
                assert_equal(host, wanted_on_host(policy, inputs, retention))
    session.check()


@pytest.mark.parametrize(("kind", "axes"), [("cross", 1), ("self", 1), ("self_three_axes", 3)])
def test_replays_wait_for_nothing(kind, axes):
    session = CompressionSession(make_policy(kind), GRID, retention=0.2, device="cuda")
    session.warm_up(torch.bfloat16, [5], with_question_positions=True, position_axes=axes)
    video, question, positions = inputs_of(GRID, 5, dtype=torch.bfloat16)
    positions = positions if axes == 1 else torch.stack((positions, positions, positions * 2))
    inputs = on_device((video, question, positions))
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pruned = [session(*inputs) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert_equal(pruned[0], pruned[2])
    assert torch.equal(pruned[0].embeds, inputs[0][pruned[0].keep])


def test_threads_on_streams_of_their_own():
    policy = make_policy("cross").double()
    session = CompressionSession(policy, GRID, retention=0.2, device="cuda", cached=2)
    jobs = [(seed, 3 + seed % 3, (0.2, 0.1)[seed % 2]) for seed in range(48)]
    barrier = threading.Barrier(4)

    def work(part):
        barrier.wait()
        done = []
        with torch.cuda.stream(torch.cuda.Stream()):
            for number, (seed, length, retention) in part:
                inputs = on_device(inputs_of(GRID, length, seed, dtype=torch.float64))
                got = session(*inputs, retention=retention)
                done.append((number, tuple(value.cpu() for value in got)))
        return done

    numbered = list(enumerate(jobs))
    with ThreadPoolExecutor(4) as pool:
        done = [
            pair for part in pool.map(work, [numbered[i::4] for i in range(4)]) for pair in part
        ]
    assert len(done) == len(jobs)
    for number, got in done:
        seed, length, retention = jobs[number]
        inputs = inputs_of(GRID, length, seed, dtype=torch.float64)
        assert_equal(got, wanted_on_host(policy, inputs, retention))


def test_a_question_read_ahead_on_its_own_stream():
    policy = make_policy("cross").double()
    session = CompressionSession(policy, GRID, retention=0.2, device="cuda")
    _, question, _ = inputs_of(GRID, 6, seed=9, dtype=torch.float64)
    read = session.read_question(question.cuda())
    for seed in range(4):
        video, other, positions = inputs_of(GRID, 6, seed=seed, dtype=torch.float64)
        got = session(video.cuda(), read, positions.cuda())
        wanted = wanted_on_host(policy, (video, question, positions), 0.2)
        assert_equal(tuple(value.cpu() for value in got), wanted)
        session(*on_device((video, other, positions)))


def test_broken_scores_leave_nothing_to_answer_from_and_are_told():
    def policy(prompt):
        rows = prompt.video_embeds.float()
        return Scores(rows.sum(1), rows[: GRID.num_frames].sum(1))

    session = CompressionSession(policy, GRID, retention=0.2, device="cuda")
    inputs = on_device(inputs_of(GRID, 2))
    broken = (inputs[0].clone(), *inputs[1:])
    broken[0][70, 3] = torch.nan
    for _ in range(4):
        assert_equal(session(*inputs), session(*inputs))
        session.check()
        assert bool(session(*broken).embeds.isnan().all())
        with pytest.raises(InvalidInputError, match="a call of this session met NaN"):
            session.check()
    session(*broken)
    torch.cuda.synchronize()
    with pytest.raises(InvalidInputError, match="an earlier call"):
        session(*inputs)
    keep = ops.select_tokens(inputs[0].sum(1), inputs[0][: GRID.num_frames].sum(1), GRID, 0.2)
    assert torch.equal(session(*inputs).keep, keep)  # the device goes on
    session.check()
