"""The evaluation against answers one at a time; resumed, shared, with videos that are broken."""

import dataclasses

import pytest
import torch

from cacovid.errors import InvalidInputError, VideoReadError
from cacovid.evaluation.answers import Answerer, Reply, Request, same_answer
from cacovid.evaluation.choosers import Chosen, choosers
from cacovid.evaluation.compare import UNCOMPRESSED, Comparison, Condition, Result, by_video
from cacovid.evaluation.processes import Processes
from cacovid.evaluation.records import Records
from cacovid.evaluation.results import (
    DETAILS,
    csv_text,
    details,
    result_rows,
    table,
    types_table,
)
from cacovid.evaluation.session import EvaluationRun, answerable
from cacovid.evaluation.trials import STAGES, Trials
from cacovid.models.generation import fixed_settings
from cacovid.models.registry import adapter_for
from cacovid.train.data import Samples, embedded_samples, read_sample
from cacovid.types import Selection

RETENTIONS = (0.25, 0.05)


@pytest.fixture(scope="module")
def samples():
    return embedded_samples("test", 3, scenes=2, per_scene=3)


def make_run(qa, samples, timed=0, names=("random", "oracle")):
    run = EvaluationRun(qa, samples, names, RETENTIONS, 5, timed, 4, embedded=True)
    run.prepare()
    return run


@pytest.fixture(scope="module")
def comparison(random_qa, samples):
    return make_run(random_qa, samples, timed=1).run(Processes())


def test_batches_say_what_generate_says_one_by_one(random_qa, samples):
    run = make_run(random_qa, samples, names=("random",))
    encoder = run._encoder(frozenset())
    requests = []
    for sample in samples:
        prepared = encoder(sample)
        (random,) = choosers(["random"], random_qa.model)
        chosen = random(prepared, [0.3, 0.05], 1)
        # A method that merges: other embeddings at the kept places.
        kept = chosen[0].selection
        merged = torch.roll(prepared.prompt.video_embeds[kept.keep], 1, 0)
        merging = Chosen(Selection(kept.keep, kept.grid, kept.counts, merged))
        requests += [Request(prepared, c.selection) for c in (*chosen, merging)]
    tokenizer = random_qa.processor.tokenizer
    replies = Answerer(random_qa.model, tokenizer, 4, batch_tokens=700)(requests)
    adapter = adapter_for(random_qa.model)
    for request, reply in zip(requests, replies, strict=True):
        sample = request.prepared.sample
        inputs = {**adapter.prune(request.prepared.embedded, request.selection)}
        assert reply.entering == inputs["input_ids"].shape[1] == request.length
        assert reply.tokens == len(request.selection.keep)
        out = random_qa.model.generate(
            **inputs, **fixed_settings(), max_new_tokens=2, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        if sample.problem_type == "multiple choice":
            ids = [tokenizer(letter).input_ids[0] for letter in sample.letters]
            assert reply.answer == sample.letters[int(out.logits[0][0, ids].argmax())]
        else:
            new = out.sequences[0, inputs["input_ids"].shape[1] :]
            assert reply.answer == tokenizer.decode(new, skip_special_tokens=True).strip()
    kinds = {r.prepared.sample.problem_type for r in requests}
    assert kinds == {"multiple choice", "exact"}
    assert len({reply.answer for reply in replies}) > 2  # the test could tell


def test_rows_hold_what_was_measured(comparison, samples):
    rows = result_rows(comparison)
    assert [(row["method"], row["retention"]) for row in rows] == [
        (UNCOMPRESSED, 1.0), ("random", 0.25), ("random", 0.05), ("oracle", 0.25), ("oracle", 0.05),
    ]  # fmt: skip
    assert [row["tokens"] for row in rows] == [576, 144, 28, 144, 28]
    assert rows[0]["agreement"] == 1.0 and rows[0]["against"]["difference"] == 0.0
    for row in rows:  # two videos are too few for intervals
        assert row["low"] is row["high"] is row["against"]["low"] is row["against"]["high"] is None
        assert row["share"] == pytest.approx(row["tokens"] / 576)
        assert row["entering"] - row["tokens"] == pytest.approx(rows[0]["entering"] - 576)
        seconds = row["seconds"]
        assert set(seconds) == {*STAGES, "first_token"} and min(seconds.values()) > 0
        assert seconds["first_token"] == pytest.approx(sum(seconds[s] for s in STAGES[:-1]))
    columns, cells = table(rows, RETENTIONS)
    assert columns == ["method", "100%", "25%", "5%"] and [c[0] for c in cells] == [
        "random", "oracle",
    ]  # fmt: skip
    plain = [dict(zip(DETAILS, line, strict=True)) for line in details(rows)]
    assert "±" not in str(table(rows, RETENTIONS)) and "None" not in csv_text(rows)
    between = {"low": -0.5, "high": 1.0}
    told = [{**row, **between, "against": {**row["against"], **between}} for row in rows]
    assert "±75.0" in str(table(told, RETENTIONS))
    shown = [dict(zip(DETAILS, line, strict=True)) for line in details(told)]
    for row, line in zip(rows, shown, strict=True):
        for stage in ("read", "vision", "compress", "prefill", "decode"):
            assert line[stage] == f"{1000 * row['seconds'][stage]:.1f}"
        assert line["first token"] == f"{1000 * row['seconds']['first_token']:.1f}"
    for line, full in zip(plain, shown, strict=True):
        assert full["accuracy"].startswith(line["accuracy"] + " ±")
        assert full["against 100%"].split(" [")[0] == line["against 100%"]
    assert len(shown) == 5 and csv_text(rows).count("\n") == 6
    assert "against.difference" in csv_text(rows).splitlines()[0]
    assert by_video(samples) == [[0, 1, 2], [3, 4, 5]]
    assert by_video(samples, most=2) == [[0, 1], [2], [3, 4], [5]]


def test_draws_are_averaged_and_told(random_qa, samples, comparison):
    run = make_run(random_qa, samples, names=("random", "uniform"))
    twice = EvaluationRun(
        random_qa, samples, ("random", "uniform"), RETENTIONS, 5, 0, 4, embedded=True, draws=3
    )
    twice.prepare()
    assert [chooser.name for chooser in twice.choosers] == [
        "random", "random (draw 2)", "random (draw 3)", "uniform",
    ]  # fmt: skip
    sample = run._encoder(frozenset())(samples[0])
    drawn = [chooser(sample, [0.1], 7)[0].selection.keep for chooser in twice.choosers]
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    again = twice.choosers[1](sample, [0.1], 7)[0].selection.keep
    assert torch.equal(again, drawn[1])
    found = twice.run(Processes())
    rows = {(row["method"], row["retention"]): row for row in result_rows(found)}
    assert [(c.method, c.retention) for c in found.conditions] == list(rows) == [
        (UNCOMPRESSED, 1.0), ("random", 0.25), ("random", 0.05), ("uniform", 0.25),
        ("uniform", 0.05),
    ]  # fmt: skip
    assert rows["random", 0.05]["draws"]["count"] == 3 and not rows["uniform", 0.05]["draws"]
    assert rows["random", 0.05]["tokens"] == 28


def test_a_mean_of_rows_is_one_by_question():
    def row(method, marks):
        return Condition(method, 0.1, marks, [57.0] * 2, [0.1] * 2, [75.0] * 2, [1.0, 0.0])

    full = Condition(UNCOMPRESSED, 1.0, [1.0, 1.0], [576.0] * 2, [1.0] * 2, [594.0] * 2, [1.0] * 2)
    rows = [full, row("a-0", [1.0, 0.0]), row("b", [0.0, 0.0]), row("a-1", [1.0, 1.0])]
    pooled = Comparison(rows, ["x", "y"], ["v", "w"]).pooled({"a": ["a-0", "a-1"], "c": ["b"]})
    assert [c.method for c in pooled.conditions] == [UNCOMPRESSED, "a", "c"]
    mean = pooled.find("a", 0.1)
    assert mean.marks == [1.0, 0.5] and mean.parts == (0.5, 1.0) and mean.accuracy == 0.75
    told = result_rows(pooled)
    assert told[1]["draws"] == {"count": 2, "lowest": 0.5, "highest": 1.0} and not told[2]["draws"]
    assert told[1]["by_type"] == {"x": 1.0, "y": 0.5}
    columns, cells = types_table(told, 0.1, {"x": 1, "y": 1})
    assert columns == ["method", "x (1)", "y (1)"]
    assert cells == [
        [UNCOMPRESSED, "100.0", "100.0"], ["a", "100.0", "50.0"], ["c", "0.0", "0.0"],
    ]  # fmt: skip


def test_oracles_want_the_whole_clip(random_qa, samples):
    run = make_run(random_qa, samples)
    random_qa_reading = random_qa.reading
    try:
        random_qa.reading = dataclasses.replace(random_qa_reading, max_frames=4)
        prepared = run._encoder(frozenset())(samples[0])
        assert prepared.prompt.grid.sizes == ((4, 6, 6),)
        (oracle,) = choosers(["oracle"], random_qa.model)
        with pytest.raises(InvalidInputError, match=r"576 tokens of a whole clip; .* reads 144"):
            oracle(prepared, [0.5], 0)
    finally:
        random_qa.reading = random_qa_reading


def test_frames_of_a_scene_are_those_of_its_file(samples):
    whole, _ = read_sample(samples[0])
    assert len(whole) == 16
    fewer, _ = read_sample(samples[0], max_frames=4)
    assert (fewer == whole[[0, 5, 10, 15]]).all()


def test_answers_that_hold_line_ends_are_read_again(tmp_path):
    answers = ("one\u2028two", "one\u0085two", "one\r\ntwo\x0b\x1c", "d\u00e9j\u00e0 \U0001f600")
    results = [
        Result(str(n), "kind", answer, (Reply(answer, 1.0, 5, 9),))
        for n, answer in enumerate(answers)
    ]
    records = Records(tmp_path, {"seed": 1})
    for result in results:
        records.add(result)
    assert records.read() == {result.id: result for result in results}
    own = tmp_path / "records-0.jsonl"
    own.write_bytes(own.read_bytes()[:-12])  # cut off inside a character
    assert set(records.read()) == {"0", "1", "2"}
    records.mend()
    records.add(results[3])
    assert records.read()["3"] == results[3]
    own.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(InvalidInputError, match="line 1 is no record"):
        records.read()


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_and_ends_the_same(random_qa, samples, comparison, tmp_path):
    run = make_run(random_qa, samples)
    header = run.header("data")
    records = Records(tmp_path, header)

    def stop(done):
        if done >= 2:
            raise Stopped

    with pytest.raises(Stopped):
        run.run(Processes(), records, stop)
    with open(tmp_path / "records-0.jsonl", "a") as file:
        file.write('{"id": "cut o')
    assert len(Records(tmp_path, header).read()) == 2
    asked = []
    again = run.run(Processes(), Records(tmp_path, header), asked.append)
    assert asked[0] == 2 and asked[-1] == 6
    for one, other in zip(again.conditions, comparison.conditions, strict=True):
        assert (one.marks, one.tokens, one.same) == (other.marks, other.tokens, other.same)
    asked.clear()
    run.run(Processes(), Records(tmp_path, header), asked.append)
    assert asked == [6]  # nothing was asked again
    with pytest.raises(InvalidInputError, match="seed was 5 and is now 6"):
        Records(tmp_path, {**header, "seed": 6})


def test_questions_without_a_video_are_listed(random_qa, samples, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    bad = dataclasses.replace(samples[0], id="bad", scene=None, video=broken)
    run = make_run(random_qa, Samples((samples[0], bad)), names=("random",))
    found = run.run(Processes(), Records(tmp_path / "run", run.header("d")))
    assert len(found.kinds) == 1 and set(found.unreadable) == {"bad"}
    assert Records(tmp_path / "run", run.header("d")).read()["bad"].unreadable
    alone = make_run(random_qa, Samples((bad,)), names=("random",))
    with pytest.raises(VideoReadError, match="none of the videos"):
        alone.run(Processes())


def test_all_methods_that_can_run(random_qa, samples, monkeypatch):
    from cacovid import methods
    from cacovid.methods import registry

    class Needy:
        name, question_aware, needs = "needy", False, frozenset({"no_such_extra"})

        def __call__(self, prompt, retention, *, seed=0):
            raise AssertionError("its extra is missing")

        def scores(self, prompt, *, seed=0):
            return None

    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    methods.register("needy", Needy)
    run = make_run(random_qa, samples, names=("oracle", "all"))
    names = [chooser.name for chooser in run.choosers]
    assert names[0] == "oracle" and len(set(names)) == len(names)
    assert {"random", "uniform", "attention", "blind-oracle"} <= set(names)
    assert "needy" not in names and "no_such_extra" in run.left_out["needy"]
    assert set(names) | set(run.left_out) >= set(methods.names())


def test_a_policy_that_a_method_serves_stands_once(random_qa, samples, monkeypatch, tmp_path):
    from cacovid.policies import SurpriseConfig, SurprisePolicy

    width = random_qa.model.config.text_config.hidden_size
    for folder in ("policy-score", "policy-other"):
        SurprisePolicy(SurpriseConfig(hidden_size=width)).save_pretrained(tmp_path / folder)
    monkeypatch.setattr(random_qa.model, "name_or_path", str(tmp_path), raising=False)
    names = [chooser.name for chooser in make_run(random_qa, samples, names=("all",)).choosers]
    assert {"score", "cacovid:other"} <= set(names) and "cacovid:score" not in names


def test_letters_that_the_tokenizer_cannot_tell_apart_are_listed(samples):
    class Deaf:
        def __call__(self, text, add_special_tokens=False):
            return type("Encoded", (), {"input_ids": [0 if text > "C" else ord(text)]})

    choice = next(s for s in samples if s.options)
    three = dataclasses.replace(choice, id="three", solution="A", options=choice.options[:3])
    five = dataclasses.replace(choice, id="five", options=(*choice.options[:4], "E. e"))
    kept = answerable(Samples((three, five)), Deaf())
    assert [s.id for s in kept] == ["three"] and "apart" in dict(kept.skipped)["sample 'five'"]
    with pytest.raises(InvalidInputError, match="no question can be answered"):
        answerable(Samples((five,)), Deaf())


def test_trials_are_what_a_user_gets(random_qa, samples, tmp_path):
    sample = next(s for s in samples if not s.options)
    made = choosers(["attention:2:question"], random_qa.model)
    trials = Trials(random_qa.model, random_qa.processor, made, [0.1], random_qa.reading, 3)
    asked = trials(sample)
    from cacovid.synthetic import make_scene

    path = make_scene("test", 3, sample.scene.index).write(tmp_path / "clip.mp4")
    answer = random_qa.ask(path, sample.problem, 0.1, method=made[0].method, max_new_tokens=3)
    assert asked.trials[1].answer == answer.text
    assert torch.equal(asked.trials[1].chosen.selection.keep, answer.selection.keep)
    assert (asked.frames == answer.frames).all()
    assert asked.trials[0].method == UNCOMPRESSED and asked.trials[0].chosen.scores is None


def test_agreement_looks_past_case_and_stops():
    assert same_answer(" The  ring.", "the ring") and not same_answer("ring", "rings")


def test_prompts_that_do_not_pack_are_written_down_by_the_adapter(random_qa, samples, monkeypatch):
    from cacovid.evaluation import answers

    encoder = make_run(random_qa, samples, names=("random",))._encoder(frozenset())
    (random,) = choosers(["random"], random_qa.model)
    requests = []
    for sample in samples:
        prepared = encoder(sample)
        (chosen,) = random(prepared, [0.2], 1)
        requests.append(Request(prepared, chosen.selection))
    answerer = Answerer(random_qa.model, random_qa.processor.tokenizer, 4)
    packed = answerer(requests)
    monkeypatch.setattr(answers, "_packs", lambda request: False)
    assert answerer(requests) == packed


def test_a_further_question_on_a_video_of_more_than_tokens(random_qa, samples):
    # Neither the tower nor the processor is asked anew, whatever the processor says of a video.
    class Talkative:
        def __init__(self, inner):
            self.inner = inner
            self.calls = 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, **given):
            self.calls += 1
            return {**self.inner(**given), "video_grid": torch.tensor([[16, 6, 6]])}

    run = make_run(random_qa, samples, names=("random",))
    plain = run._encoder(frozenset())
    talkative = run._encoder(frozenset())
    talkative.processor = Talkative(random_qa.processor)
    first, second = samples[0], samples[1]
    assert first.video_key == second.video_key
    wanted = [plain(first), plain(second)]
    found = [talkative(first), talkative(second)]
    assert talkative.processor.calls == 1
    assert found[1].embedded.features is found[0].embedded.features
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.prompt.embeds, other.prompt.embeds, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["fastv", "framefusion"])
@pytest.mark.filterwarnings("ignore:.*layer-averaged retention")
def test_methods_inside_the_language_model_are_compared_too(name, random_qa, samples):
    run = make_run(random_qa, samples, names=(name, "uniform"))
    encoder, qa = run._encoder(frozenset()), random_qa
    prepared = encoder(samples[0])
    (chooser,) = choosers([name], qa.model)
    whole, part = chooser(prepared, [1.0, 0.4], 0)
    answerer = Answerer(qa.model, qa.processor.tokenizer, 4)
    plain = Chosen(whole.selection)
    requests = [Request(prepared, c.selection, c.hook) for c in (plain, whole, part)]
    uncompressed, same, fewer = answerer(requests)
    assert same.answer == uncompressed.answer and same.tokens == 576
    # All tokens enter; the budget is an average over the layers, and so is what is told.
    assert fewer.entering == uncompressed.entering
    assert fewer.tokens == round(sum(part.hook.tokens_per_layer) / part.hook.depth) < 576
    timed = Trials(qa.model, qa.processor, [chooser], [0.4], qa.reading, 2)(samples[0])
    assert timed.trials[1].chosen.kept.counts == (part.hook.tokens_per_layer[-1],)
    assert timed.trials[1].entering == fewer.entering


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("kind", ["multiple choice", "exact"])
def test_logits_that_are_no_numbers_give_no_answer(random_qa, samples, monkeypatch, kind, alone):
    from cacovid.evaluation import answers

    sample = next(s for s in samples if s.problem_type == kind)
    prepared = make_run(random_qa, samples, names=("random",))._encoder(frozenset())(sample)
    (random,) = choosers(["random"], random_qa.model)
    request = Request(prepared, random(prepared, [0.1], 1)[0].selection)
    answerer = Answerer(random_qa.model, random_qa.processor.tokenizer, 4)
    if alone:
        monkeypatch.setattr(answers, "_packs", lambda request: False)
    head = random_qa.model.get_output_embeddings()
    with (
        head.register_forward_hook(lambda _m, _a, logits: logits * float("nan")),
        pytest.raises(InvalidInputError, match="NaN or infinite") as caught,
    ):
        answerer([request])
    assert repr(sample.id) in str(caught.value)
