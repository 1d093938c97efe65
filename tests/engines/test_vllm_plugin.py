"""The vLLM plugin inside the installed vLLM: processors, hashes, caches, models on the CPU.

Runs where vllm is installed: `make test-engines`.
"""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vllm is not installed; make test-engines installs it", allow_module_level=True)

from cacovid import SelfAttentionPolicy, prune_inputs
from cacovid.engines import vllm as plugin
from cacovid.engines.vllm import contract, positions
from cacovid.engines.vllm.pruner import VideoPruner
from cacovid.engines.vllm.settings import Reading
from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.methods import PolicyMethod
from cacovid.types import Grid
from tests.engines.tiny_vllm import (
    NAMES,
    RETENTION,
    SIZES,
    Engine,
    embed,
    features_of,
    model_class,
    names,
)
from tests.models.families import QUESTIONS, SIDE

FIRST, SECOND, _ = QUESTIONS


@pytest.fixture(scope="module", params=sorted(NAMES))
def engine(request, tmp_path_factory):
    return Engine(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def model(engine):
    return engine.make_model()


def grid_of(engine, number):
    """Tokens of a clip: pairs of frames on patches of 4, merged by 2 (Qwen)."""
    frames, height, width = SIZES[number]
    if engine.name == "llava_onevision":
        return frames, SIDE, SIDE
    return frames // 2, height // 8, width // 8


def budget(engine, number, retention):
    return Grid([grid_of(engine, number)]).budgets(retention)[0]


def video_id(engine):
    return engine.processor.video_token_id


# What is installed.


def test_the_installed_release_keeps_the_contract():
    assert contract.broken() == []
    release = vllm_release()
    assert any(release.startswith(f"{tested}.") for tested in contract.TESTED), release


def vllm_release():
    from importlib.metadata import version

    return version("vllm")


def test_a_changed_release_is_refused(monkeypatch):
    name = ("vllm.multimodal.processing", "BaseMultiModalProcessor.apply")
    gone = ("vllm.multimodal.processing", "BaseMultiModalProcessor.no_such")
    monkeypatch.setattr(contract, "CONTRACT", {name: ("inputs",), gone: ()})
    with pytest.raises(UnsupportedModelError, match=r"apply takes inputs, timing_ctx in.*has no"):
        contract.check()


def test_registered_by_name_as_the_entry_point_says():
    import tomllib
    from pathlib import Path

    from vllm import ModelRegistry

    root = Path(__file__).resolve().parents[2]
    points = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    module, _, function = points["vllm.general_plugins"]["cacovid"].partition(":")
    assert getattr(importlib.import_module(module), function) is plugin.register
    before = dict(ModelRegistry.models)
    try:
        plugin.register()
        plugin.register()  # every process of vLLM does, some twice
        for name, architecture in NAMES.items():
            entry = ModelRegistry.models[architecture]
            assert entry.load_model_cls() is model_class(name)
    finally:
        ModelRegistry.models.clear()
        ModelRegistry.models.update(before)


# The processor.


@pytest.mark.parametrize("retention", [None, 0.29, 0.5, 1.0, 1e-6])
def test_placeholders_are_the_exact_budget(engine, retention):
    given = {} if retention is None else {"cacovid_retention": retention}
    out = engine.ask(FIRST, (0, 2), **given)
    for number, place in zip((0, 2), out["mm_placeholders"]["video"], strict=True):
        ids = out["prompt_token_ids"][place.offset : place.offset + place.length]
        kept = budget(engine, number, retention or RETENTION)
        newline = engine.name == "llava_onevision"
        assert ids.count(video_id(engine)) == kept + newline
        if engine.name != "qwen3_vl":
            assert place.length == kept + newline


def test_the_question_goes_along(engine):
    out = engine.ask(FIRST)
    ids, places, asking = out["mm_kwargs"]["video"][0][names.TEXT].data
    assert engine.tokenizer.decode(ids) == FIRST and bool(asking.all())
    assert torch.equal(places.diff(), torch.ones(len(ids) - 1, dtype=torch.int64))
    assert int(places[0]) == (1 if engine.name == "llava_onevision" else 2)
    named = engine.ask(FIRST, cacovid_question="first thing ?")
    assert engine.tokenizer.decode(named["mm_kwargs"]["video"][0][names.TEXT].data[0]) == (
        "first thing ?"
    )


def hashes(out, modality="video"):
    return out["mm_hashes"][modality]


def test_caches_key_on_video_question_and_share(engine):
    one = engine.ask(FIRST, (0,), images=(0,))
    assert hashes(engine.ask(FIRST, (0,), images=(0,))) == hashes(one)
    others = [
        engine.ask(SECOND, (0,), images=(0,)),
        engine.ask(FIRST, (1,), images=(0,)),
        engine.ask(FIRST, (0,), images=(0,), cacovid_retention=0.5),
    ]
    assert len({hashes(out)[0] for out in (one, *others)}) == 4
    # An image is the same whatever is asked, and a video whatever else is shown.
    assert len({hashes(out, "image")[0] for out in (one, *others)}) == 1
    assert hashes(engine.ask(FIRST, (1, 0)))[1] == hashes(engine.ask(FIRST, (0,)))[0]


def keys(out):
    return [bytes(item[names.KEY].data.numpy()) for item in out["mm_kwargs"]["video"]]


def test_held_features_key_on_the_video_alone(engine):
    first, second = engine.ask(FIRST, (0, 1)), engine.ask(SECOND, (1,), cacovid_retention=0.5)
    assert keys(first)[1] == keys(second)[0] != keys(first)[0]


def same(left, right):
    assert left["prompt_token_ids"] == right["prompt_token_ids"]
    assert left["mm_hashes"] == right["mm_hashes"]
    assert left["mm_placeholders"] == right["mm_placeholders"]
    for ours, theirs in zip(left["mm_kwargs"]["video"], right["mm_kwargs"]["video"], strict=True):
        for name in names.FIELDS:
            assert torch.equal(ours[name].data, theirs[name].data), name


def test_the_processor_cache_gives_what_is_asked(engine):
    from vllm.multimodal.cache import MultiModalProcessorOnlyCache

    cache = MultiModalProcessorOnlyCache(engine.config)
    wishes = [(FIRST, (0,)), (FIRST, (0,)), (SECOND, (0,)), (SECOND, (1, 0)), (SECOND, (0, 1, 2))]
    for question, clips in wishes:
        same(engine.ask(question, clips, cache=cache), engine.ask(question, clips))
    called = []
    original = engine.processor._call_hf_processor
    engine.processor._call_hf_processor = lambda *a: called.append(a) or original(*a)
    try:
        engine.ask(SECOND, (2, 1), cache=cache)
    finally:
        del engine.processor._call_hf_processor
    assert called == []


def test_the_fields_travel_between_processes(engine):
    from vllm.multimodal.inputs import MultiModalKwargsItem
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    item = engine.ask(FIRST)["mm_kwargs"]["video"][0]
    back = MsgpackDecoder(MultiModalKwargsItem).decode(MsgpackEncoder().encode(item))
    for name in names.FIELDS:
        assert torch.equal(back[name].data, item[name].data)
        assert back[name].data.dtype == item[name].data.dtype


def test_blind_methods_share_a_video_between_questions(engine, monkeypatch):
    monkeypatch.setitem(vars(engine.processor), "_reading", Reading(False, False))
    first, second = engine.ask(FIRST), engine.ask(SECOND)
    assert hashes(first) == hashes(second)
    assert first["mm_kwargs"]["video"][0][names.TEXT].data.shape == (3, 0)


def test_memory_profiling_asks_for_something(engine):
    out = engine.processor.get_dummy_mm_inputs({"video": 1, "image": 1})
    (item,) = out["mm_kwargs"]["video"]
    assert item[names.TEXT].data.shape == (3, 1) and float(item[names.SHARE].data) == RETENTION


def test_requests_that_cannot_be(engine):
    with pytest.raises(InvalidInputError, match=r"cacovid_retention is 1\.5"):
        engine.ask(FIRST, cacovid_retention=1.5)
    with pytest.raises(InvalidInputError, match="does not stand in prompt"):
        engine.ask(FIRST, cacovid_question="which is last ?")
    with pytest.raises(InvalidInputError, match="no question"):
        engine.ask("")
    if engine.name != "llava_onevision":
        ids = engine.prompt(FIRST, 1)
        at = ids.index(video_id(engine))
        with pytest.raises(InvalidInputError, match="without a token between"):
            engine.ask(FIRST, (0, 1), prompt=[*ids[:at], video_id(engine), *ids[at:]])


def test_defaults_that_cannot_be(engine):
    info = SimpleNamespace(
        get_mm_config=lambda: SimpleNamespace(
            mm_processor_kwargs={"videos_kwargs": {"cacovid_retention": 0.5}},
            video_pruning_rate=0.5,
        )
    )
    processor = object.__new__(type(engine.processor))
    processor.info = SimpleNamespace(ctx=info)
    with pytest.raises(InvalidInputError, match="--video-pruning-rate"):
        _ = processor._retention


# The model.


def test_every_weight_is_in_the_checkpoint(engine, model):
    assert {name for name, _ in model.named_parameters()} <= set(engine.loaded)


def test_without_the_flag_no_model_is_made(engine, model):
    config = SimpleNamespace(
        get_multimodal_config=lambda: SimpleNamespace(video_pruning_rate=None),
        hf_config=model.config,
        model=engine.folder,
    )
    with pytest.raises(InvalidInputError, match="--video-pruning-rate"):
        model.start_pruning(SimpleNamespace(model_config=config))


def test_a_video_without_its_question_is_refused(engine, model):
    with pytest.raises(InvalidInputError, match="without cacovid_text"):
        model.embed_multimodal(pixel_values_videos=torch.zeros(1, 2, 3, 24, 24))


def towers(model, monkeypatch):
    """Counts the runs of the vision tower."""
    name = "_process_video_input" if hasattr(model, "visual") else "_process_video_pixels"
    seen, original = [], getattr(model, name)
    monkeypatch.setattr(model, name, lambda given: seen.append(1) or original(given), raising=False)
    return seen


def test_a_second_question_runs_no_vision_tower(engine, model, monkeypatch):
    model._features.__init__(model._features.max_bytes)
    seen = towers(model, monkeypatch)
    first = engine.ask(FIRST, (0, 1))
    rows = embed(model, first)
    before = len(seen)
    second = engine.ask(SECOND, (1, 0))
    held = embed(model, second)
    assert before > 0 and len(seen) == before
    model._features.__init__(0)
    fresh = embed(model, second)
    assert len(seen) > before
    for ours, theirs in zip(held, fresh, strict=True):
        torch.testing.assert_close(ours, theirs)
    # The question has a say: cdpruner is question-aware.
    assert not torch.equal(rows[0], held[1])
    model._features.__init__(2**30)


def test_one_video_asked_about_twice_in_a_batch_is_seen_once(engine, model, monkeypatch):
    model._features.__init__(2**30)
    seen = towers(model, monkeypatch)
    twice = embed(model, engine.ask(FIRST, (1,)), engine.ask(SECOND, (1,)))
    assert len(seen) == 1
    model._features.__init__(0)
    for question, rows in zip((FIRST, SECOND), twice, strict=True):
        torch.testing.assert_close(rows, embed(model, engine.ask(question, (1,)))[0])
    model._features.__init__(2**30)


def test_rows_are_as_many_as_placeholders(engine, model):
    for retention in (1e-6, 0.29, 1.0):
        out = engine.ask(FIRST, (0, 2), images=(0,), cacovid_retention=retention)
        for modality in ("video", "image"):
            for rows, place in zip(
                embed(model, out, modality=modality), out["mm_placeholders"][modality], strict=True
            ):
                assert rows.shape[0] == place.get_num_embeds()


def test_memory_profiling_embeds(engine, model):
    out = engine.processor.get_dummy_mm_inputs({"video": 1})
    (rows,) = embed(model, out)
    assert rows.shape[0] == out["mm_placeholders"]["video"][0].get_num_embeds()


def whole_ids(engine, out, number):
    """A request's ids with placeholders of all tokens, as the Hugging Face processor has them."""
    ids, (place,) = out["prompt_token_ids"], out["mm_placeholders"]["video"]
    t, h, w = grid_of(engine, number)
    inside = ids[place.offset : place.offset + place.length]
    if engine.name == "qwen3_vl":
        inside = engine.processor.get_video_repl(
            tokens_per_frame=[h * w] * t,
            timestamps=out["mm_kwargs"]["video"][0]["timestamps"].data,
            tokenizer=engine.tokenizer,
            vision_start_token_id=engine.hf.config.vision_start_token_id,
            vision_end_token_id=engine.hf.config.vision_end_token_id,
            video_token_id=video_id(engine),
        ).full
    else:
        inside = [video_id(engine)] * (t * h * w + (engine.name == "llava_onevision"))
    return ids[: place.offset] + inside + ids[place.offset + place.length :], len(inside)


def hf_inputs(engine, out, number):
    """What the Hugging Face model takes for the same request."""
    ids, _ = whole_ids(engine, out, number)
    item = out["mm_kwargs"]["video"][0]
    ids = torch.tensor([ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pixels = item["pixel_values_videos"].data
    if engine.name == "llava_onevision":
        return inputs | {"pixel_values_videos": pixels[None]}
    inputs["mm_token_type_ids"] = 2 * (ids == video_id(engine)).int()
    inputs |= {"pixel_values_videos": pixels, "video_grid_thw": item["video_grid_thw"].data[None]}
    if "second_per_grid_ts" in item:
        inputs["second_per_grid_ts"] = item["second_per_grid_ts"].data.reshape(1)
    return inputs


@pytest.fixture(params=["cdpruner", "self-attention"])
def chooser(request, engine, model, monkeypatch):
    """A method that reads the question, and a policy that reads the whole prompt's positions."""
    if request.param == "cdpruner":
        return request.param
    torch.manual_seed(4)
    policy = SelfAttentionPolicy.from_language_model(engine.hf).eval()
    for layer in (*policy.token_compress, *policy.frame_compress):
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=1.5 * layer.in_features**-0.5)
    monkeypatch.setitem(vars(engine.processor), "_reading", Reading(True, True))
    monkeypatch.setattr(model, "_pruner", VideoPruner(PolicyMethod(policy)))
    return policy


@pytest.mark.parametrize("number", [0, 2])
def test_kept_rows_are_those_of_prune_inputs(engine, model, number, chooser):
    """Same weights, same pixels, same question: the same tokens and, up to rounding, rows."""
    if engine.name == "qwen2_5_vl" and chooser != "cdpruner" and number == 2:
        pytest.skip("behind a video that lasts longer than it is wide, transformers counts on from "
                    "its width, vLLM from its end")  # fmt: skip
    out = engine.ask(FIRST, (number,))
    (rows,) = embed(model, out)
    pruned = prune_inputs(
        engine.hf, hf_inputs(engine, out, number), chooser, RETENTION, tokenizer=engine.tokenizer
    )
    levels = (pruned.features.rows, *pruned.features.deepstack)
    keep = pruned.selection.keep
    if engine.name == "llava_onevision":
        wanted = torch.cat((levels[0][:-1][keep], levels[0][-1:]))
    else:
        wanted = torch.cat([level[keep] for level in levels], dim=1)
        columns, rows = rows[:, -positions.WIDTH :], rows[:, : -positions.WIDTH]
    if engine.name == "qwen3_vl":
        # Timestamps stand between; what is no token of the video has no deepstack.
        video = rows[:, levels[0].shape[1] :].abs().sum(1) > 0
        text, rows, columns = rows[~video], rows[video], columns[video]
        assert text.shape[0] == out["mm_placeholders"]["video"][0].length - len(keep)
    torch.testing.assert_close(rows, wanted, rtol=1e-4, atol=1e-4)
    if engine.name == "llava_onevision":
        return
    inside = positions.from_digits(columns)[:, :3].T
    kept = torch.isin(pruned.inputs["input_ids"][0], torch.tensor([video_id(engine)]))
    theirs = pruned.inputs["position_ids"][1:, 0][:, kept]
    assert torch.equal(inside - inside[:, :1], theirs - theirs[:, :1])


@pytest.mark.parametrize("chunk", [5, 11, 1000])
def test_positions_are_those_of_vllm_without_pruning(engine, model, chunk):
    """An image, a short video and one that is longer than it is wide; in chunks of the prefill."""
    if engine.name == "llava_onevision":
        pytest.skip("positions of one axis are vLLM's own")
    base = next(one for one in type(model).__mro__ if one.__module__.startswith("vllm."))
    out = engine.ask(FIRST, (0, 2), images=(0,))
    ids, features = out["prompt_token_ids"], features_of(out)
    features.sort(key=lambda feature: feature.mm_position.offset)
    rows = {"image": embed(model, out, modality="image"), "video": embed(model, out)}
    wanted, kept = _unpruned(engine, model, base, out, features, rows)
    found, delta = model.get_mrope_input_positions(ids, features)
    assert delta == int(wanted[0, -1]) + 1 - len(ids)
    text = torch.ones(len(ids), dtype=torch.bool)
    for feature in features:
        text[feature.mm_position.offset :][: feature.mm_position.length] = False
    assert torch.equal(found[:, text], wanted[:, kept][:, text])
    for begin in range(0, len(ids), chunk):
        parts, counts = [], {"image": 0, "video": 0}
        for feature in features:
            whole = rows[feature.modality][counts[feature.modality]]
            counts[feature.modality] += 1
            place = feature.mm_position
            a, b = max(begin - place.offset, 0), min(begin + chunk - place.offset, place.length)
            if a < b:
                parts.append(whole[a:b])
        left, found, after = model.recompute_mrope_positions(ids, parts, found, begin)
        assert after == delta and all(
            one.shape[1] == part.shape[1] - positions.WIDTH
            for one, part in zip(left, parts, strict=True)
        )
    assert torch.equal(found, wanted[:, kept])


def _unpruned(engine, model, base, out, features, rows):
    """Positions by vLLM's own class for the whole prompt, and which of its columns are kept."""
    from dataclasses import replace

    from vllm.multimodal.inputs import PlaceholderRange

    ids, whole, kept, done, moved = out["prompt_token_ids"], [], [], 0, []
    number = 0
    for feature in features:
        place = feature.mm_position
        inside = ids[place.offset : place.offset + place.length]
        stays = torch.ones(len(inside), dtype=torch.bool)
        if feature.modality == "video":
            single = {
                "prompt_token_ids": inside,
                "mm_placeholders": {"video": [replace(place, offset=0)]},
                "mm_kwargs": {"video": [feature.data]},
            }
            inside, _ = whole_ids(engine, single, (0, 2)[number])
            stays = _kept_columns(engine, model, inside, rows["video"][number], (0, 2)[number])
            number += 1
        whole += ids[done : place.offset]
        kept += [True] * (place.offset - done)
        moved.append(replace(feature, mm_position=PlaceholderRange(len(whole), len(inside))))
        whole += inside
        kept += stays.tolist()
        done = place.offset + place.length
    whole += ids[done:]
    kept += [True] * (len(ids) - done)
    places, _ = base.get_mrope_input_positions(model, whole, moved)
    return places, torch.tensor(kept)


def _kept_columns(engine, model, inside, rows, number):
    """Which of a whole video's places have a row: known by the positions that came with it."""
    columns = positions.from_digits(rows[:, -positions.WIDTH :])[:, :3]
    t, h, w = grid_of(engine, number)
    if engine.name == "qwen3_vl":
        # `<0.2 seconds>` and the begin marker are seven tokens, up to `<9.2 seconds>`.
        place = positions.frame_positions((t, h, w), [7] * t)
        flags = torch.tensor([token == video_id(engine) for token in inside])
        whole = torch.empty(3, len(inside), dtype=torch.int64)
        whole[:, flags], whole[:, ~flags] = place.video, place.text
    else:
        step = model.config.vision_config.tokens_per_second * 1.0  # a pair of frames a second
        whole = positions.grid_positions((t, h, w), step)
    found = {tuple(one) for one in columns.tolist()}
    assert len(found) == len(columns)
    return torch.tensor([tuple(one) in found for one in whole.T.tolist()])


def test_embeddings_come_without_their_positions(engine, model):
    """What the language model reads: the rows at their places, text between."""
    out = engine.ask(FIRST, (0,))
    (rows,) = embed(model, out)
    (place,) = out["mm_placeholders"]["video"]
    if engine.name != "llava_onevision":
        found, _ = model.get_mrope_input_positions(out["prompt_token_ids"], features_of(out))
        (rows,), _, _ = model.recompute_mrope_positions(
            out["prompt_token_ids"], [rows], found, 0
        )
    ids = torch.tensor(out["prompt_token_ids"])
    where = torch.zeros(len(ids), dtype=torch.bool)
    where[place.offset : place.offset + place.length] = True
    with torch.inference_mode():
        merged = model.embed_input_ids(ids, [rows], is_multimodal=where)
        text = model.get_language_model().embed_input_ids(ids[~where])
    width = merged.shape[1]
    assert torch.equal(merged[where], rows[:, :width]) and torch.equal(merged[~where], text)
