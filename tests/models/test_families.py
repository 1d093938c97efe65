"""What every family's adapter has to keep, on a tiny random model of it."""

from __future__ import annotations

import contextlib
import itertools
from types import SimpleNamespace

import pytest
import torch

from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.models import QuestionSource, adapter_for, attach, prune_inputs, running
from cacovid.models.generation import release
from cacovid.train.decoding import decode_greedily
from cacovid.train.packing import pad_rows
from tests.models.families import FAMILIES, QUESTIONS, VARIANTS, Request, make_tokenizer

NEW = {"max_new_tokens": 6, "do_sample": False}
#: Prompts of different length, with two videos, with an image before the video, and with one.
REQUESTS = (
    Request(QUESTIONS[0], (0, 1)),
    Request(QUESTIONS[1], (2,), image=True),
    Request(QUESTIONS[2], (3,)),
)


@pytest.fixture(scope="module", params=FAMILIES, ids=repr)
def case(request):
    """A family with its tokenizer, its model and a ragged batch."""
    family, tokenizer = request.param, make_tokenizer()
    model = family.make_model(tokenizer)
    adapter = adapter_for(model)
    with as_documented(model):
        yield SimpleNamespace(
            family=family, tokenizer=tokenizer, model=model, adapter=adapter,
            batch=family.make_inputs(tokenizer, REQUESTS),
        )  # fmt: skip


def as_documented(model):
    """What old releases need around `generate`, and new ones do not."""
    return running(model) if release() < (5, 18) else contextlib.nullcontext()


def video_token(case):
    return case.adapter.video_token_id(case.model.config)


def rounding(logits):
    """What float32 sums of up to 48 terms, the widest of these models, may differ by in order."""
    return {"rtol": 0, "atol": 48 * torch.finfo(torch.float32).eps * float(logits.abs().max())}


def inputs_of(case, *requests):
    return case.family.make_inputs(case.tokenizer, requests)


def pruned_of(case, inputs, method="attention:1:question", retention=0.3, **settings):
    return prune_inputs(case.model, inputs, method, retention, tokenizer=case.tokenizer, **settings)


def answers(model, inputs, **settings):
    out = model.generate(**inputs, **{**NEW, **settings})
    return out[:, inputs["input_ids"].shape[1] :]


def test_keeping_everything_is_plain_generate(case):
    pruned = pruned_of(case, case.batch, retention=1.0)
    assert pruned.removed == 0
    plain = case.model.generate(**case.batch, **NEW)
    assert torch.equal(case.model.generate(**pruned.inputs, **NEW), plain)
    said = plain[:, case.batch["input_ids"].shape[1] :].tolist()
    assert len({tuple(row) for row in said}) == len(REQUESTS), "the answers hang on the prompts"


@pytest.mark.parametrize("family", VARIANTS, ids=repr)
def test_variants_of_a_family(family):
    tokenizer = make_tokenizer()
    model, batch = family.make_model(tokenizer), family.make_inputs(tokenizer, REQUESTS)
    plain = model.generate(**batch, **NEW)
    kept = prune_inputs(model, batch, "uniform", 1.0)
    with as_documented(model):
        assert torch.equal(model.generate(**kept.inputs, **NEW), plain)
        got = answers(model, prune_inputs(model, batch, "uniform", 0.3).inputs)
        for row, request in enumerate(REQUESTS):
            single = prune_inputs(model, family.make_inputs(tokenizer, [request]), "uniform", 0.3)
            assert torch.equal(answers(model, single.inputs)[0], got[row])


def test_pruning_changes_the_logits(case):
    full = pruned_of(case, case.batch, retention=1.0)
    pruned = pruned_of(case, case.batch, retention=0.1)
    change = case.model(**pruned.forward_inputs).logits[:, -1]
    change = change - case.model(**full.forward_inputs).logits[:, -1]
    assert (change.abs().amax(-1) > 1e-2).all()


def decoder_call(case, inputs):
    """What the plain model hands its decoder: embeddings, positions, features of deeper layers."""
    caught = {}

    def catch(_module, _args, kwargs):
        caught.update(kwargs)

    decoder = case.adapter.text_model(case.model)
    handle = decoder.register_forward_pre_hook(catch, with_kwargs=True)
    with torch.no_grad():
        case.model(**inputs)
    handle.remove()
    if caught.get("position_ids") is None:
        caught["position_ids"] = torch.arange(caught["inputs_embeds"].shape[1])[None]
    return caught


def renumbered(positions):
    """By hand: the positions that a prompt uses, on whatever axis, counted up from 0."""
    new = {old: rank for rank, old in enumerate(sorted(set(positions.flatten().tolist())))}
    return positions.clone().apply_(lambda old: new[old])


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_equals_a_prompt_built_by_hand(case, lab, positions):
    inputs = inputs_of(case, Request(QUESTIONS[0], (0,), image=True))
    tokens = sum(case.family.tokens(Request("", (0,), image=True)))
    keep = [0, 4, 5, tokens - 1]
    pruned = prune_inputs(
        case.model, inputs, lab.HandPicked(keep, [4]), 4 / tokens, positions=positions
    )

    whole = decoder_call(case, inputs)
    ids = inputs["input_ids"][0]
    video = (ids == video_token(case)).nonzero().flatten()
    dropped = set(video[:tokens].tolist()) - {int(video[i]) for i in keep}
    columns = [i for i in range(len(ids)) if i not in dropped]
    place = whole["position_ids"][-3:][..., columns]
    if positions == "compact":
        place = renumbered(place)
    more = {}
    if whole.get("deepstack_visual_embeds") is not None:
        shown = whole["visual_pos_masks"]
        kept = [n for n, i in enumerate(shown[0].nonzero().flatten()) if int(i) not in dropped]
        more = {
            "visual_pos_masks": shown[:, columns],
            "deepstack_visual_embeds": [level[kept] for level in whole["deepstack_visual_embeds"]],
        }
    with torch.no_grad():
        hidden = case.adapter.text_model(case.model)(
            inputs_embeds=whole["inputs_embeds"][:, columns], position_ids=place,
            attention_mask=torch.ones(1, len(columns), dtype=torch.int64), **more,
        ).last_hidden_state  # fmt: skip
        expected = case.model.lm_head(hidden)
        mine = case.model(**pruned.forward_inputs).logits
    assert pruned.inputs["input_ids"].tolist() == [ids[columns].tolist()]
    assert torch.equal(pruned.inputs["position_ids"][-3:], place)
    torch.testing.assert_close(mine, expected, **rounding(expected))


def test_a_text_row_without_gaps_stands_before_several_axes(case):
    pruned = pruned_of(case, case.batch)
    positions = pruned.inputs["position_ids"]
    if positions.dim() == 3:
        shown = pruned.inputs["attention_mask"]
        assert positions.shape[0] == 4
        assert torch.equal(positions[0], (shown.cumsum(-1) - 1).clamp(min=0))


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_cached_decoding_equals_recomputation(case, positions):
    pruned = pruned_of(case, case.batch, positions=positions)
    # Placeholders said by chance would be read as such in the recomputation.
    never = [case.model.config.image_token_id, video_token(case)]
    out = case.model.generate(
        **pruned.inputs, **NEW, suppress_tokens=never, return_dict_in_generate=True,
        output_logits=True,
    )  # fmt: skip
    start = pruned.inputs["input_ids"].shape[1]
    new = out.sequences[:, start:]
    steps = torch.arange(1, new.shape[1] + 1)
    longer = pruned.forward_inputs
    longer["position_ids"] = torch.cat(
        (longer["position_ids"], longer["position_ids"][..., -1:] + steps), dim=-1
    )
    longer["attention_mask"] = torch.cat((longer["attention_mask"], torch.ones_like(new)), dim=1)
    if "inputs_embeds" in longer:
        words = case.model.get_input_embeddings()(new)
        deeper = longer["inputs_embeds"].shape[-1] - words.shape[-1]
        words = torch.nn.functional.pad(words, (0, deeper))
        longer["inputs_embeds"] = torch.cat((longer["inputs_embeds"], words), dim=1)
    else:
        longer["input_ids"] = torch.cat((longer["input_ids"], new), dim=1)
    with torch.no_grad():
        again = case.model(**longer, use_cache=False).logits[:, start - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), again, **rounding(again))
    again[..., never] = -torch.inf
    assert torch.equal(again.argmax(-1), new)


def test_decoding_goes_on_from_the_whole_prompts_next_position(case):
    """The last prompt token stands where it stood, and plain decoding counts on from there."""
    whole = pruned_of(case, case.batch, retention=1.0).inputs["position_ids"]
    short = pruned_of(case, case.batch, retention=0.1).inputs["position_ids"]
    assert torch.equal(short[-1, ..., -1], whole[-1, ..., -1])


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2},
     {"cache_implementation": "static"}],
    ids=["greedy", "beams", "several", "static"],
)  # fmt: skip
def test_ragged_batch_equals_one_by_one(case, settings):
    together = pruned_of(case, case.batch)
    got = answers(case.model, together.inputs, **settings)
    kept = torch.split(together.selection.keep, together.selection.counts)
    bounds, video = together.selection.grid.host_video_offsets, 0
    each = settings.get("num_return_sequences", 1)
    for row, request in enumerate(REQUESTS):
        single = pruned_of(case, inputs_of(case, request))
        mine, begin = [], 0
        for tokens in case.family.tokens(request):
            mine.append(kept[video] - bounds[video] + begin)
            begin += tokens
            video += 1
        assert torch.equal(single.selection.keep, torch.cat(mine))
        expected = answers(case.model, single.inputs, **settings)
        assert torch.equal(expected, got[row * each : (row + 1) * each])


def test_inputs_serve_more_than_once(case):
    pruned = pruned_of(case, case.batch)
    beams = [answers(case.model, pruned.inputs, num_beams=2) for _ in range(2)]
    assert torch.equal(*beams)
    assert torch.equal(answers(case.model, pruned.inputs), answers(case.model, pruned.inputs))


def test_returned_sequences_are_those_of_repeated_prompts(case):
    request = Request(QUESTIONS[0], (0, 1), image=True)
    pruned = pruned_of(case, inputs_of(case, request))
    sampling = {"do_sample": True, "top_k": 8}
    torch.manual_seed(0)
    got = answers(case.model, pruned.inputs, num_return_sequences=3, **sampling)
    three = pruned_of(case, inputs_of(case, request, request, request))
    torch.manual_seed(0)
    assert torch.equal(answers(case.model, three.inputs, **sampling), got)
    assert len({tuple(row) for row in got.tolist()}) == 3


def test_budgets_of_each_request(case):
    sizes = [case.family.tokens(request) for request in REQUESTS]
    shares = [0.5, 1.0, 0.1, 0.04][: sum(map(len, sizes))]
    pruned = pruned_of(case, case.batch, "random", shares, seed=3)
    left = iter(shares)
    expected = [[max(1, int(next(left) * tokens + 1e-9)) for tokens in row] for row in sizes]
    assert pruned.selection.counts == tuple(itertools.chain(*expected))
    rows = pruned.inputs["input_ids"] == video_token(case)
    separators = case.adapter.separators
    assert rows.sum(-1).tolist() == [sum(row) + separators * len(row) for row in expected]


def test_right_padding_is_the_same_prompt(case):
    shifts = (case.batch["attention_mask"] == 0).sum(-1)
    turned = dict(case.batch)
    for name, value in case.batch.items():
        if value.shape == case.batch["input_ids"].shape:
            rows = [torch.roll(row, -int(s)) for row, s in zip(value, shifts, strict=True)]
            turned[name] = torch.stack(rows)
    left, right = (pruned_of(case, inputs).inputs for inputs in (case.batch, turned))
    for name in ("input_ids", "attention_mask", "position_ids"):
        assert torch.equal(left[name], right[name]), name
    assert torch.equal(answers(case.model, left), answers(case.model, right))


def test_received_attention_is_the_models_own(case):
    inputs = inputs_of(case, Request(QUESTIONS[0], (0, 1), image=True))
    before = case.model.config._attn_implementation
    case.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = case.model(**inputs, output_attentions=True).attentions
        asking = itertools.product((0, 2), ("last", "question"))
        embedded = case.adapter.embed(
            case.model, inputs, [f"received_attention/{layer}/{who}" for layer, who in asking],
            question=QuestionSource(text=QUESTIONS[0], tokenizer=case.tokenizer),
        )  # fmt: skip
    finally:
        case.model.set_attn_implementation(before)
    prompt = embedded.prompt
    for layer in (0, 2):
        mean = maps[layer][0].mean(0)[:, prompt.video_index]
        # The question of the first video; a second one has the same.
        question = prompt.question_index[: prompt.question_offsets[1]]
        expected = {"last": mean[-1], "question": mean[question].mean(0)}
        for who, wanted in expected.items():
            got = prompt.extras[f"received_attention/{layer}/{who}"]
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("how", ["markers", "text", "no tokenizer"])
def test_the_question_is_found(case, how):
    source = QuestionSource(
        text=[request.question for request in REQUESTS] if how == "text" else None,
        tokenizer=None if how == "no tokenizer" else case.tokenizer, required=True,
    )  # fmt: skip
    generation = case.model.generation_config
    generation.eos_token_id = case.tokenizer.eos_token_id
    try:
        prompt = case.adapter.embed(case.model, case.batch, question=source).prompt
    finally:
        generation.eos_token_id = None
    ids = case.batch["input_ids"][case.batch["attention_mask"].bool()]
    owners = [request for request in REQUESTS for _ in case.family.tokens(request)]
    for video, request in enumerate(owners):
        begin, end = prompt.question_offsets[video : video + 2]
        found = ids[prompt.question_index[begin:end]]
        wanted = case.tokenizer(request.question)["input_ids"]
        assert found.tolist() == wanted, case.tokenizer.decode(found)


def test_attach_gives_the_same_answers_and_leaves_nothing(case):
    expected = answers(case.model, pruned_of(case, case.batch).inputs)
    with torch.no_grad():
        logits = case.model(**pruned_of(case, case.batch).forward_inputs).logits
    modules = list(case.model.modules())
    before = [dict(vars(module)) for module in modules]
    with attach(case.model, "attention:1:question", 0.3, tokenizer=case.tokenizer):
        out = case.model.generate(**case.batch, **NEW)
        beams = case.model.generate(**case.batch, **NEW, num_beams=2)
        with torch.no_grad():
            assert torch.equal(case.model(**case.batch).logits, logits)
        with pytest.raises(UnsupportedModelError, match="prefill_chunk_size"):
            case.model.generate(**case.batch, **NEW, prefill_chunk_size=8)
    assert [dict(vars(module)) for module in modules] == before
    width = case.batch["input_ids"].shape[1]
    assert torch.equal(out[:, :width], case.batch["input_ids"])
    assert torch.equal(out[:, width:], expected)
    assert beams.shape == out.shape


def test_chunked_prefill_reads_the_prompt_or_fails(case):
    pruned = pruned_of(case, case.batch)
    expected = answers(case.model, pruned.inputs)
    if case.adapter.reads_chunks:
        for size in (5, 16):
            got = answers(case.model, pruned.inputs, prefill_chunk_size=size)
            assert torch.equal(got, expected)
    else:
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            case.model.generate(**pruned.inputs, **NEW, prefill_chunk_size=5)


def check_compiled(case, modules):
    settings = {"max_new_tokens": 2, "do_sample": False}
    pruned = pruned_of(case, case.batch)
    expected = case.model.generate(**pruned.inputs, **settings)
    for module in modules:
        module.compile(backend="eager")
    try:
        again = pruned_of(case, case.batch)
        assert torch.equal(again.selection.keep, pruned.selection.keep)
        assert torch.equal(case.model.generate(**again.inputs, **settings), expected)
    finally:
        for module in modules:
            module._compiled_call_impl = None
        torch.compiler.reset()


def test_compiled_layers(case):
    check_compiled(case, case.adapter.text_model(case.model).layers[1:2])


@pytest.mark.exhaustive
def test_compiled_model(case):
    check_compiled(case, [case.model])


def test_streaming(case):
    from transformers import TextStreamer

    class Collect(TextStreamer):
        text = ""

        def on_finalized_text(self, text, stream_end=False):
            self.text += text

    pruned = pruned_of(case, inputs_of(case, REQUESTS[1]))
    streamer = Collect(case.tokenizer, skip_prompt=True)
    out = answers(case.model, pruned.inputs, streamer=streamer)
    assert streamer.text.strip() == case.tokenizer.decode(out[0]).strip()


def test_releases_before_the_handing_over_of_features(case, monkeypatch):
    """The same prompts as embeddings; with deepstack while `running` lasts only."""
    expected = answers(case.model, pruned_of(case, case.batch).inputs)
    monkeypatch.setattr("cacovid.models.placeholders.release", lambda: (5, 17))
    inputs = pruned_of(case, case.batch).inputs
    assert "inputs_embeds" in inputs
    if inputs["inputs_embeds"].shape[-1] > 32 and release() >= (5, 18):
        with pytest.raises(RuntimeError, match="size"):
            answers(case.model, inputs)
    hooks = len(case.adapter.text_model(case.model)._forward_pre_hooks)
    with running(case.model):
        assert torch.equal(answers(case.model, inputs), expected)
        assert answers(case.model, inputs, num_beams=2).shape == expected.shape
    assert len(case.adapter.text_model(case.model)._forward_pre_hooks) == hooks


def test_features_serve_a_further_question(case):
    one, other = (Request(question, (2,)) for question in QUESTIONS[:2])
    first = case.adapter.embed(case.model, inputs_of(case, one))
    text = {"input_ids", "attention_mask"}
    asked = {k: v for k, v in inputs_of(case, other).items() if k in text}
    again = case.adapter.embed(case.model, asked, features=first.features)
    fresh = case.adapter.embed(case.model, inputs_of(case, other))
    assert torch.equal(again.prompt.embeds, fresh.prompt.embeds)
    assert torch.equal(again.prompt.position_ids, fresh.prompt.position_ids)


def test_rollouts_of_training_are_the_models_own_reading(case):
    """All tokens, next to a few: the first word and the answer are those of plain `generate`."""
    from cacovid.train.rewards import LocalReward

    inputs = inputs_of(case, REQUESTS[2])
    embedded = case.adapter.embed(case.model, inputs)
    prepared = SimpleNamespace(prompt=embedded.prompt, sample=None)
    masks = torch.ones(2, embedded.prompt.grid.num_tokens, dtype=torch.bool)
    masks[0, 1:] = False
    reward = object.__new__(LocalReward)
    reward.encoder, reward.batch_tokens = SimpleNamespace(model=case.model), 1000
    said = []

    def read(packed):
        said.extend(decode_greedily(case.model, case.tokenizer, pad_rows(packed), 6))
        logits = reward._logits(packed, None)[:, -1]
        return logits.argmax(-1).float(), logits[:, 0]

    first, _ = reward._in_parts(prepared, masks, read)
    plain = answers(case.model, inputs)
    assert first[1] == plain[0, 0]
    assert said[1] == case.tokenizer.decode(plain[0], skip_special_tokens=True) != said[0]


def test_prompts_that_do_not_fit(case):
    cut = dict(case.batch)
    for name, value in case.batch.items():
        if value.shape == case.batch["input_ids"].shape:
            cut[name] = value[:, 40:]
    with pytest.raises(InvalidInputError, match="placeholders and features do not match"):
        pruned_of(case, cut, "uniform")
    wrong = torch.zeros(2, *case.batch["input_ids"].shape, dtype=torch.int64)
    with pytest.raises(InvalidInputError, match="position_ids"):
        pruned_of(case, {**case.batch, "position_ids": wrong}, "uniform")
