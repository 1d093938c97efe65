"""Sessions give what the policy and the ops give, replayed or not, and refuse what does not fit."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cacovid import CompressionSession, Grid, Prompt, Pruned, Scores, ops
from cacovid.errors import InvalidInputError, WrongBaseModelError
from cacovid.session.guard import Guard
from cacovid.session.recording import Recent

from .conftest import WIDTH, inputs_of, make_policy

GRID = Grid([(3, 4, 5), (2, 3, 3)])


def expected(policy, video, question, positions, grid, retention):
    """`policy(prompt)`, `select_tokens`, `gather`, one after another."""
    n, total = grid.num_tokens, grid.num_tokens + len(question)
    prompt = Prompt(
        embeds=torch.cat((video, question)),
        position_ids=positions,
        video_index=torch.arange(n),
        question_index=torch.arange(n, total),
        grid=grid,
    )
    with torch.no_grad():
        scores = policy(prompt)
    keep = ops.select_tokens(
        scores.token,
        scores.frame,
        grid,
        retention,
        policy_share=policy.config.policy_share,
        max_frame_ratio=policy.config.max_frame_ratio,
    )
    return keep, ops.gather(video, keep), positions[..., :n][..., keep]


def assert_equal(got: Pruned, wanted) -> None:
    for mine, other in zip(got, wanted, strict=True):
        assert mine.dtype == other.dtype and torch.equal(mine, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [0, 1, 7, 63, 90])
def test_a_session_is_policy_and_selection_and_gather(policy, length, dtype):
    video, question, positions = inputs_of(GRID, length, dtype=dtype)
    session = CompressionSession(policy, GRID, retention=[0.3, 0.12], device="cpu")
    wanted = expected(policy, video, question, positions, GRID, [0.3, 0.12])
    assert_equal(session(video, question, positions), wanted)
    assert len(wanted[0]) == sum(GRID.budgets([0.3, 0.12]))
    session.check()


def test_replays_give_the_same_for_questions_grids_and_budgets_that_come_and_go(policy, recorders):
    session = CompressionSession(policy, GRID, retention=0.2)
    other = Grid([(1, 7, 9)])
    calls = [
        (grid, retention, length)
        for grid in (GRID, other)
        for retention in (0.2, 0.05)
        for length in (5, 9)
    ]
    for turn in range(4):  # as it is, captured, replayed, replayed
        for number, (grid, retention, length) in enumerate(calls):
            inputs = inputs_of(grid, length, seed=100 * turn + number)
            got = session(*inputs, grid=grid, retention=retention)
            assert_equal(got, expected(policy, *inputs, grid, retention))
    assert recorders[0].recorded and recorders[0].replayed > recorders[0].recorded


def test_one_graph_of_the_video_serves_questions_of_every_length(recorders):
    session = CompressionSession(make_policy("cross"), GRID, retention=0.2)
    for length in range(1, 20):
        session(*inputs_of(GRID, length))
    video, question = recorders
    assert (video.recorded, video.replayed) == (1, 18)
    assert question.recorded == 0  # no length came twice
    session(*inputs_of(GRID, 19))
    assert question.recorded == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["cross", "cross_without_slots"])
def test_the_graph_of_the_video_holds_the_kernels_alone(kind, dtype, recorders):
    session = CompressionSession(make_policy(kind), GRID, retention=0.2)
    session.warm_up(dtype, [5])
    video, question = recorders
    assert video.work == ["cacovid::score", "cacovid::select_and_gather"]
    assert question.work.count("aten::cat") >= 3  # of the fold's columns and of both heads


def test_results_are_the_callers_own_unless_asked_otherwise(policy, recorders):
    first, second = inputs_of(GRID, 5, seed=1), inputs_of(GRID, 5, seed=2)
    for reuse in (False, True):
        session = CompressionSession(policy, GRID, retention=0.2, reuse_outputs=reuse)
        session.warm_up(torch.float32, [5], with_question_positions=True)
        one = session(*first)
        before = one.embeds.clone()
        two = session(*second)
        assert (one.embeds.data_ptr() == two.embeds.data_ptr()) is reuse
        assert torch.equal(one.embeds, before) is not reuse
    assert recorders[0].replayed > 0


def test_warm_up_leaves_nothing_to_capture(policy, recorders):
    session = CompressionSession(policy, GRID, retention=0.2)
    session.warm_up(torch.float32, [5, 8], with_question_positions=True)
    before = [(r.recorded, r.replayed) for r in recorders]
    for length in (5, 8):
        session(*inputs_of(GRID, length))
    assert [r.recorded for r in recorders] == [recorded for recorded, _ in before]
    assert recorders[0].replayed == before[0][1] + 2


def test_what_is_written_to_the_input_buffer_is_read(policy, recorders):
    session = CompressionSession(policy, GRID, retention=0.2)
    for seed in range(3):
        video, question, positions = inputs_of(GRID, 5, seed=seed)
        buffer = session.input_buffer(torch.float32)
        buffer.copy_(video)
        wanted = expected(policy, video, question, positions, GRID, 0.2)
        assert_equal(session(buffer, question, positions), wanted)
    assert session.input_buffer(torch.float32).data_ptr() == buffer.data_ptr()
    assert recorders[0].replayed == 2


def test_a_question_read_ahead_serves_many_videos(policy, recorders):
    session = CompressionSession(policy, GRID, retention=0.2)
    _, question, _ = inputs_of(GRID, 6, seed=9)
    read = session.read_question(question)
    for seed in range(4):
        video, other, positions = inputs_of(GRID, 6, seed=seed)
        wanted = expected(policy, video, question, positions, GRID, 0.2)
        assert_equal(session(video, read, positions), wanted)
        session(video, other, positions)  # another question's fold is written in between
        session.read_question(other)
    with pytest.raises(InvalidInputError, match="read by another session"):
        CompressionSession(policy, GRID, retention=0.2)(video, read, positions)


def test_weights_that_change_in_place_count(recorders):
    policy = make_policy("cross")
    session = CompressionSession(policy, GRID, retention=0.2)
    inputs = inputs_of(GRID, 5)
    session.warm_up(torch.float32, [5])
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight))
    assert_equal(session(*inputs), expected(policy, *inputs, GRID, 0.2))
    assert recorders[1].replayed > 0


def test_positions_of_three_axes_and_of_the_video_alone(recorders):
    policy = make_policy("cross")
    session = CompressionSession(policy, GRID, retention=0.2)
    video, question, positions = inputs_of(GRID, 5)
    three = torch.stack((positions, positions * 2, positions * 3))
    for _ in range(3):
        full, alone = session(video, question, three), session(video, question, three[:, :78])
        assert full.position_ids.shape == (3, sum(GRID.budgets(0.2)))
        assert torch.equal(full.position_ids, three[:, full.keep])
        assert_equal(alone, full)


@pytest.mark.parametrize(("kind", "captured"), [("self_three_axes", True), ("self", False)])
def test_positions_of_three_axes_are_read_in_a_graph_where_the_policy_has_three(
    kind, captured, recorders
):
    """With one axis the policy looks at the positions, which no graph can."""
    policy = make_policy(kind)
    session = CompressionSession(policy, GRID, retention=0.2)
    for seed in range(4):
        video, question, positions = inputs_of(GRID, 5, seed=seed)
        three = positions.expand(3, -1).clone()
        if captured:
            three += torch.randint(0, 9, three.shape, generator=torch.Generator().manual_seed(seed))
        wanted = expected(policy, video, question, three, GRID, 0.2)
        assert_equal(session(video, question, three), wanted)
    assert (recorders[0].recorded, recorders[0].replayed) == ((1, 3) if captured else (0, 0))


def test_text_follows_the_largest_position_of_all_axes():
    policy = make_policy("self_three_axes")
    video, question, _ = inputs_of(GRID, 5)
    n = GRID.num_tokens
    axes = torch.stack((torch.arange(n) // 20, torch.arange(n) // 5, torch.arange(n) % 5 * 30))
    text = (int(axes.max()) + torch.arange(1, 6)).expand(3, -1)
    seen = []

    def watched(prompt):
        seen.append(prompt.position_ids)
        return policy(prompt)

    session = CompressionSession(watched, GRID, retention=0.2)
    session(video, question, axes)
    assert torch.equal(seen[0], torch.cat((axes, text), dim=1))


def test_a_policy_that_reads_positions_takes_the_question_behind_the_video():
    policy = make_policy("self")
    video, question, _ = inputs_of(GRID, 5)
    n = GRID.num_tokens
    session = CompressionSession(policy, GRID, retention=0.2)
    whole = torch.arange(7, 7 + n + 5)
    assert_equal(session(video, question, whole[:n]), session(video, question, whole))


def test_all_text_of_a_prompt_makes_the_self_attention_policys_own_scores():
    """The policy has no causal mask: where the text stands is a matter of its positions alone."""
    policy = make_policy("self").double()
    video, text, _ = inputs_of(GRID, 9, dtype=torch.float64)
    n = GRID.num_tokens
    prompt = Prompt(
        embeds=torch.cat((text[:4], video, text[4:])),
        position_ids=torch.arange(n + 9),
        video_index=torch.arange(4, 4 + n),
        question_index=torch.arange(4 + n, n + 9),
        grid=GRID,
    )
    with torch.no_grad():
        scores = policy(prompt)
    keep = ops.select_tokens(scores.token, scores.frame, GRID, 0.2)
    positions = torch.cat((torch.arange(4, 4 + n), torch.arange(4), torch.arange(4 + n, n + 9)))
    session = CompressionSession(policy, GRID, retention=0.2)
    assert torch.equal(session(video, text, positions).keep, keep)


def test_threads_do_not_disturb_each_other(policy, recorders):
    session = CompressionSession(policy, GRID, retention=0.2, cached=2)
    jobs = [(seed, 3 + seed % 3, (0.2, 0.1)[seed % 2]) for seed in range(48)]
    wanted = [
        expected(policy, *inputs_of(GRID, length, seed), GRID, retention)
        for seed, length, retention in jobs
    ]
    barrier = threading.Barrier(8)

    def work(part):
        barrier.wait()
        return [
            (number, session(*inputs_of(GRID, length, seed), retention=retention))
            for number, (seed, length, retention) in part
        ]

    numbered = list(enumerate(jobs))
    with ThreadPoolExecutor(8) as pool:
        done = [
            pair for part in pool.map(work, [numbered[i::8] for i in range(8)]) for pair in part
        ]
    assert len(done) == len(jobs)
    for number, got in done:
        assert_equal(got, wanted[number])


def test_a_policy_without_frame_scores_that_knows_no_question():
    def policy(prompt):
        return Scores(prompt.video_embeds.sum(1))

    session = CompressionSession(policy, GRID, retention=0.2)
    video, question, positions = inputs_of(GRID, 2)
    keep = ops.select_tokens(video.sum(1), None, GRID, 0.2)
    assert torch.equal(session(video, question, positions).keep, keep)
    with pytest.raises(InvalidInputError, match="give hidden_size"):
        session.input_buffer(torch.float32)
    assert session.input_buffer(torch.float32, hidden_size=5).shape == (78, 5)


def test_only_the_last_shapes_are_held():
    dropped = []
    recent = Recent(2, lambda: dropped.append(1))
    for key in "abacabb":
        recent.get(key, lambda key=key: key)
    assert len(recent) == 2 and len(dropped) == 2  # c pushed b out, b pushed c out


@pytest.mark.parametrize("where", ["token", "frame"])
def test_broken_scores_raise_at_once_on_the_cpu(where):
    def policy(prompt):
        scores = {"token": torch.zeros(78), "frame": torch.zeros(5)}
        scores[where][3] = torch.nan
        return Scores(scores["token"], scores["frame"])

    session = CompressionSession(policy, GRID, retention=0.2)
    with pytest.raises(InvalidInputError, match="NaN"):
        session(*inputs_of(GRID, 2))


def test_guard_lets_good_scores_pass_and_tells_of_others():
    guard = Guard(torch.device("cpu"))
    good = Scores(torch.tensor([1.0, -torch.inf, torch.inf]), torch.tensor([2.0]))
    scores, broken = guard.guarded(good)
    assert torch.equal(scores.token, good.token) and torch.equal(scores.frame, good.frame)
    rows = torch.randn(3, 2)
    assert torch.equal(guard.poisoned(rows, broken), rows)
    guard.publish()
    guard.raise_if_broken("a call")
    for bad in (
        Scores(torch.tensor([1.0, torch.nan])),
        Scores(torch.zeros(2), torch.tensor([torch.inf])),
        Scores(torch.zeros(2), torch.tensor([torch.nan])),
    ):
        scores, broken = guard.guarded(bad)
        assert torch.equal(scores.token, torch.zeros(2))
        assert bool(guard.poisoned(rows, broken).isnan().all())
        guard.guarded(good)  # a good call after it hides nothing
        guard.publish()
        with pytest.raises(InvalidInputError, match="a call of this session met NaN"):
            guard.raise_if_broken("a call")
        guard.publish()
        guard.raise_if_broken("a call")  # told once


def test_errors_say_what_was_given_and_expected():
    policy = make_policy("cross")
    session = CompressionSession(policy, GRID, retention=0.2, device="cpu")
    video, question, positions = inputs_of(GRID, 5)
    for change, error, message in (
        ({"video": video[1:]}, InvalidInputError, r"\(77, 32\); expected \[78, 32\]"),
        ({"video": video[:, 1:]}, WrongBaseModelError, "hidden size 31.*hidden size 32"),
        ({"video": video.long()}, InvalidInputError, "video_embeds is torch.int64"),
        ({"video": video[0]}, InvalidInputError, r"video_embeds has shape \(32,\)"),
        ({"question": question[:, 1:]}, WrongBaseModelError, "question_embeds has hidden size 31"),
        ({"question": question.double()}, InvalidInputError, "float64 and video_embeds .*float32"),
        ({"question": question[None]}, InvalidInputError, r"expected \[L, 32\]"),
        (
            {"positions": positions[:-1]},
            InvalidInputError,
            r"\(82,\); expected \[78\] or \[3, 78\]",
        ),
        ({"positions": positions.int()}, InvalidInputError, "position_ids is torch.int32"),
        ({"positions": positions.expand(2, -1)}, InvalidInputError, r"\(2, 83\)"),
        ({"video": video.to("meta")}, InvalidInputError, "video_embeds is on meta.*on cpu"),
    ):
        given = {"video": video, "question": question, "positions": positions, **change}
        with pytest.raises(error, match=message):
            session(*given.values())
    from cacovid import methods

    bare = CompressionSession(lambda p: p.embeds[:78, 0], GRID, retention=0.2, device="cpu")
    with pytest.raises(InvalidInputError, match=r"returned a Tensor; expected cacovid\.Scores"):
        bare(video, question, positions)
    for wrong, told in (
        ("uniform", "the name 'uniform'; expected a policy.*load_policy"),
        (methods.get("uniform"), "the method 'uniform', which selects by itself; expected"),
        (methods.PolicyMethod(policy), "the method .*Pass its policy: method.policy"),
        (type(policy), "was given <class .*; expected a policy"),
        (None, "was given None; expected a policy"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            CompressionSession(wrong, GRID, retention=0.2, device="cpu")
    with pytest.raises(InvalidInputError, match="expected"):
        session(video, question, positions, grid=[(1, 2, 3)])
    with pytest.raises(InvalidInputError, match="retention is 0"):
        session(video, question, positions, retention=0.0)
    assert session.input_buffer(torch.float32).shape[1] == WIDTH


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retention": 1.5}, "retention is 1.5"),
        ({"retention": [0.1, 0.2, 0.3]}, "3 values for 2 videos"),
        ({"policy_share": 2.0}, "policy_share is 2.0"),
        ({"max_frame_ratio": -1.0}, "max_frame_ratio is -1.0"),
        ({"cached": 0}, "cached is 0"),
        ({"device": "meta"}, "'meta', which .*; expected cpu or cuda"),
    ],
)
def test_settings_out_of_range_are_refused_when_given(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        CompressionSession(make_policy("cross"), GRID, **{"retention": 0.2, **settings})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(InvalidInputError, match="torch sees no CUDA device"):
        CompressionSession(make_policy("cross"), GRID, retention=0.2, device="cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 1.5])
def test_a_device_that_no_session_can_have_is_refused(device):
    with pytest.raises(InvalidInputError, match=f"device is .*{device}.* expected"):
        CompressionSession(make_policy("cross"), GRID, retention=0.2, device=device)
