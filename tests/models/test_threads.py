"""Threads that share one model: each has the selections and answers that it has alone."""

from __future__ import annotations

import copy
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch

from cacovid.errors import UnsupportedModelError
from cacovid.models import VideoQA, adapter_for, attach, prune_inputs
from cacovid.models.own_thread import hooked, is_replaced, replaced
from cacovid.models.score_memory import ScoreMemory

QUESTIONS = ["what colour is the first thing ?", "which shape is last ?"]
NEW = {"max_new_tokens": 4, "do_sample": False}

pytestmark = pytest.mark.filterwarnings("ignore:.*layer-averaged retention")


@pytest.fixture
def two():
    """Two threads that live on; what is submitted to one runs there, step by step."""
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        yield [lambda *call, on=on: on.submit(*call).result(60) for on in (first, second)]


@pytest.fixture
def qa(model, processor):
    return VideoQA(model, processor)


def state(model):
    """Everything on the instances, hook tables and replaced methods among it."""
    return {
        (id(module), name): copy.copy(value) if isinstance(value, dict) else value
        for module in model.modules()
        for name, value in vars(module).items()
    }


def in_step(module, threads, calls):
    """A hook on a module at which the threads wait for each other at their first calls."""
    barrier, mine = threading.Barrier(threads), threading.local()

    def wait(_module, _args):
        mine.calls = getattr(mine, "calls", 0) + 1
        if mine.calls <= calls:
            barrier.wait(20)

    return module.register_forward_pre_hook(wait)


def watched(model, method):
    """What runs while the method's own hooks are there: the vision tower, or the decoder."""
    adapter = adapter_for(model)
    return adapter.vision_tower(model) if method == "visionzip" else adapter.text_model(model)


@pytest.mark.parametrize(
    "methods",
    [["attention"] * 3, ["visionzip"] * 3, ["fastv:1", "uniform"], ["framefusion", "attention"]],
    ids="+".join,
)
def test_each_thread_answers_as_alone(methods, qa, lab):
    clips = [lab.clip(seed, 4 + seed) for seed in range(len(methods))]

    def ask(number):
        answer = qa.ask(
            clips[number], QUESTIONS[number % 2], 0.4, method=methods[number], max_new_tokens=4
        )
        received = None if answer.scores is None else answer.scores.token.tolist()
        return answer.text, answer.selection.keep.tolist(), received

    alone = [ask(number) for number in range(len(methods))]
    assert len({text for text, *_ in alone}) > 1, "the answers should tell the threads apart"
    before = state(qa.model)
    # Each thread's hooks are in place when the threads go on together.
    waiting = in_step(watched(qa.model, methods[0]), len(methods), calls=1)
    try:
        with ThreadPoolExecutor(len(methods)) as pool:
            together = list(pool.map(ask, range(len(methods)), timeout=60))
    finally:
        waiting.remove()
    assert together == alone
    assert state(qa.model) == before


@pytest.fixture
def batch(lab, processor):
    return lab.ask(processor, QUESTIONS, [lab.clip(i) for i in range(2)])


def pruned_answer(model, batch, method, retention):
    pruned = prune_inputs(model, batch, method, retention)
    out = model.generate(**pruned.inputs, **NEW)[:, pruned.inputs["input_ids"].shape[1] :]
    return torch.cat((batch["input_ids"], out), dim=1)


def test_attach_leaves_other_threads_alone(model, batch, two):
    first, second = two
    plain = model.generate(**batch, **NEW)
    logits = model(**batch).logits
    expected = pruned_answer(model, batch, "uniform", 0.2)
    assert not torch.equal(plain, expected)
    with attach(model, "uniform", 0.2) as attached:
        assert torch.equal(first(lambda: model.generate(**batch, **NEW)), plain)
        assert torch.equal(second(lambda: model(**batch).logits), logits)
        # Prompts that an attached model refuses.
        assert torch.equal(first(pruned_answer, model, batch, "uniform", 0.2), expected)
        assert attached.last is None
        assert torch.equal(model.generate(**batch, **NEW), expected)


@pytest.mark.parametrize("last", [0, 1])
def test_attached_in_two_threads_in_any_order_of_ending(last, model, batch, two):
    plain = model.generate(**batch, **NEW)
    expected = [pruned_answer(model, batch, method, 0.2) for method in ("uniform", "divprune")]
    assert not torch.equal(*expected)
    before, order = state(model), list(vars(model))
    ends = [ExitStack(), ExitStack()]
    for run, end, method in zip(two, ends, ("uniform", "divprune"), strict=True):
        run(end.enter_context, attach(model, method, 0.2))
    for run, answer in zip(two, expected, strict=True):
        assert torch.equal(run(lambda: model.generate(**batch, **NEW)), answer)
    assert torch.equal(model.generate(**batch, **NEW), plain)
    two[1 - last](ends[1 - last].close)
    assert torch.equal(two[1 - last](lambda: model.generate(**batch, **NEW)), plain)
    assert torch.equal(two[last](lambda: model.generate(**batch, **NEW)), expected[last])
    # Another thread may end what it did not begin, as frameworks that serve requests do.
    ends[last].close()
    assert torch.equal(two[last](lambda: model.generate(**batch, **NEW)), plain)
    assert state(model) == before and list(vars(model)) == order


def test_attached_once_in_each_thread(model, two):
    with attach(model, "uniform", 0.2) as attached:
        attached._used = True
        with pytest.raises(UnsupportedModelError, match="attached already"):
            attach(model, "uniform", 0.2).__enter__()
        end = ExitStack()
        with pytest.warns(RuntimeWarning, match="nothing was pruned"):
            two[0](end.enter_context, attach(model, "uniform", 0.2))
            two[0](end.close)


def test_a_block_that_pruned_nothing_says_so(model, batch, two):
    message = "attach in each of them"
    with pytest.warns(RuntimeWarning, match=message) as told, attach(model, "uniform", 0.2):
        two[0](lambda: model.generate(**batch, **NEW))
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attach(model, "uniform", 0.2) as attached:
            got = two[0](lambda: attached.generate(**batch, **NEW))
        with pytest.raises(KeyError), attach(model, "uniform", 0.2):
            raise KeyError
    assert torch.equal(got, pruned_answer(model, batch, "uniform", 0.2))


def test_hooks_and_methods_know_their_thread(two):
    module, seen = torch.nn.Linear(2, 2), []
    original = module.extra_repr
    before = state(module)

    def enter(name):
        def hook(_module, args, kwargs):
            seen.append(name)
            return (args[0] + 1, *args[1:]), kwargs

        end = ExitStack()
        end.enter_context(hooked((module, hook)))
        end.enter_context(replaced((module, "extra_repr", lambda found: lambda: found() + name)))
        return end

    row = torch.ones(1, 2)
    plain, moved = module(row), module(row + 1)
    ends = [run(enter, name) for run, name in zip(two, "ab", strict=True)]
    ends.append(two[0](enter, "c"))
    assert torch.equal(module(row), plain) and seen == [] and module.extra_repr() == original()
    assert not is_replaced(module, "extra_repr")
    assert two[1](is_replaced, module, "extra_repr")
    assert torch.equal(two[1](module, row), moved) and seen == ["b"]
    assert two[0](module.extra_repr) == original() + "ac"
    two[0](ends[0].close)  # not the newest of its thread
    assert two[0](lambda: module.extra_repr()).endswith("c")
    two[1](ends[1].close)
    assert two[1](lambda: module.extra_repr()) == original()
    two[0](ends[2].close)
    assert state(module) == before


def test_scores_are_forgotten_by_one_thread_at_a_time():
    memory = ScoreMemory(videos=2)

    class Key:
        """Its hash is asked twice by `get`; before the second time another thread forgets it."""

        asked = 0

        def __hash__(self):
            Key.asked += 1
            if Key.asked == 3:
                forgetting.start()
                forgetting.join(0.2)
            return 1

    key = Key()
    forgetting = threading.Thread(target=memory.put, args=("another", None))
    for video in (key, "other"):
        memory.put(video, None)
    memory.get(key)
    forgetting.join(20)
    assert len(memory._known) == 2 and "another" in memory._known
