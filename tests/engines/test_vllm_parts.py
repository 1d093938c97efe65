"""What the vLLM plugin is made of, without vLLM: question, positions, features held, choice."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch

from cacovid import CrossAttentionPolicy, SelfAttentionConfig, SelfAttentionPolicy, prune_inputs
from cacovid.engines import vllm as plugin
from cacovid.engines.vllm import positions
from cacovid.engines.vllm.feature_cache import FeatureCache
from cacovid.engines.vllm.integers import from_digits, to_digits
from cacovid.engines.vllm.pruner import VideoPruner
from cacovid.engines.vllm.question import STAND_IN, find_text
from cacovid.engines.vllm.settings import PluginSettings, Reading, default_retention
from cacovid.errors import (
    InvalidInputError,
    MissingDependencyError,
    UnsupportedModelError,
    WrongBaseModelError,
)
from cacovid.methods import PolicyMethod, get
from cacovid.models.registry import adapter_for
from cacovid.policies.cross_attention import CrossAttentionConfig
from cacovid.types import Grid
from tests.models.families import FAMILIES, QUESTIONS, VIDEO, Request, make_tokenizer

BY_NAME = {family.name: family for family in FAMILIES}
WIDTH = 32
#: Positions between frames (two a second), and `<0.5 seconds>` with the begin marker in tokens.
STEP, LEAD = 1.0, 7


def make(name):
    family, tokenizer = BY_NAME[name], make_tokenizer()
    return family, tokenizer, family.make_model(tokenizer)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_without_vllm_the_entry_point_says_what_to_install():
    with pytest.raises(MissingDependencyError, match=r"pip install cacovid\[vllm\]"):
        plugin.register()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_integers_survive_every_dtype_of_models(dtype):
    values = torch.randint(0, 256**3, (50, 4), generator=torch.Generator().manual_seed(0))
    values[0] = torch.tensor([0, 255, 256, 256**3 - 1])
    assert torch.equal(from_digits(to_digits(values).to(dtype)), values)


# Positions: a shortened prompt gets, chunk by chunk, those that the whole one has.


def runs(flags):
    """`(begin, end)` of the runs of True."""
    flat = [False, *flags, False]
    edges = [n for n in range(1, len(flat)) if flat[n] != flat[n - 1]]
    return [(a - 1, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def shortened_qwen2_5(ids, places, video, sizes, generator):
    """Ids, wanted positions, media and columns of a prompt with some tokens of each video."""
    out, wanted, media, columns, done = [], [], [], [], 0
    spans = runs([token == video for token in ids])
    for (begin, end), size in zip(spans, sizes, strict=True):
        keep = torch.randperm(end - begin, generator=generator)[: (end - begin) // 3 + 1].sort()[0]
        grid = positions.grid_positions(size, STEP)
        media.append((len(out) + begin - done, len(keep), positions.extent(grid)))
        columns.append(positions.columns(grid[:, keep], 0))
        out += [*ids[done:begin], *[video] * len(keep)]
        wanted += [places[:, done:begin], places[:, begin:end][:, keep]]
        done = end
    return [*out, *ids[done:]], torch.cat([*wanted, places[:, done:]], dim=1), media, columns


def shortened_qwen3(ids, places, video, sizes, generator):
    """Likewise: placeholders of all frames stand in the first, their rows where they belong."""
    out, wanted, media, columns, done = [], [], [], [], 0
    spans = runs([token == video for token in ids])
    for size in sizes:
        frames, spans = spans[: size[0]], spans[size[0] :]
        begin, end = frames[0][0] - LEAD, frames[-1][1] + 1
        flags = torch.tensor([token == video for token in ids[begin:end]])
        place = positions.frame_positions(size, [LEAD] * size[0])
        whole = torch.empty(3, len(flags), dtype=torch.int64)
        whole[:, flags], whole[:, ~flags] = place.video, place.text
        kept = ~flags | (torch.rand(len(flags), generator=generator) < 0.4)
        kept[LEAD] = True  # at least one
        media.append((len(out) + begin - done, int(kept.sum()), place.extent))
        columns.append(positions.columns(whole[:, kept], LEAD))
        text = [token for token in ids[begin:end] if token != video]
        out += [*ids[done:begin], *text[:LEAD], *[video] * int((kept & flags).sum()), *text[LEAD:]]
        wanted += [places[:, done:begin], places[:, begin:end][:, kept]]
        done = end
    return [*out, *ids[done:]], torch.cat([*wanted, places[:, done:]], dim=1), media, columns


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def shortened(request):
    family, tokenizer, model = make(request.param)
    inputs = family.make_inputs(tokenizer, [Request(QUESTIONS[0], (0, 3))])
    if "second_per_grid_ts" in inputs:
        # Where a video lasts longer than it is wide, transformers counts on from its width, and
        # vLLM from its end: see test_vllm_plugin.py.
        inputs["second_per_grid_ts"] = torch.full((2,), STEP / 2)
    embedded = adapter_for(model).embed(model, inputs)
    build = {"qwen2_5_vl": shortened_qwen2_5, "qwen3_vl": shortened_qwen3}[request.param]
    made = build(
        inputs["input_ids"][0].tolist(), embedded.prompt.position_ids, model.config.video_token_id,
        embedded.prompt.grid.sizes, torch.Generator().manual_seed(3),
    )  # fmt: skip
    return (*made, {model.config.video_token_id})


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 13, 1000])
def test_positions_are_those_of_the_whole_prompt(shortened, chunk):
    ids, wanted, media, columns, video = shortened
    found, delta = positions.initial_positions(len(ids), media)
    assert delta == int(wanted[0, -1]) + 1 - len(ids)
    for begin in range(0, len(ids), chunk):
        parts = []
        for (offset, rows, _), all_columns in zip(media, columns, strict=True):
            a, b = max(begin - offset, 0), min(begin + chunk - offset, rows)
            if a < b:
                parts.append(all_columns[a:b].bfloat16())
        found, after = positions.write_positions(found, ids, parts, begin, video)
        assert after == delta
        assert torch.equal(found[:, begin : begin + chunk], wanted[:, begin : begin + chunk])
    assert torch.equal(found, wanted)


def test_text_is_right_where_videos_come_from_the_prefix_cache(shortened):
    ids, wanted, media, _, _ = shortened
    found, _ = positions.initial_positions(len(ids), media)
    text = torch.ones(len(ids), dtype=torch.bool)
    for offset, rows, _ in media:
        text[offset : offset + rows] = False
    assert text.any() and not text.all()
    assert torch.equal(found[:, text], wanted[:, text])


# Features held.


def test_the_videos_used_longest_ago_make_room():
    cache = FeatureCache(3 * 40)
    rows = {key: torch.full((5, 2), float(n)) for n, key in enumerate((b"a", b"b", b"c", b"d"))}
    for key in (b"a", b"b", b"c"):
        cache.put(key, rows[key])
    assert torch.equal(cache.get(b"a", torch.device("cpu")), rows[b"a"])
    cache.put(b"d", rows[b"d"])
    assert cache.get(b"b", torch.device("cpu")) is None
    assert len(cache) == 3 and cache.held_bytes == 120
    cache.put(b"a", rows[b"d"][:1])
    assert len(cache) == 3 and cache.held_bytes == 88
    cache.put(b"e", torch.zeros(100))  # does not fit: the others stay
    assert len(cache) == 3 and cache.get(b"e", torch.device("cpu")) is None


def test_what_is_held_is_a_copy_and_nothing_is_held_of_no_bytes():
    cache, rows = FeatureCache(1000), torch.ones(2, 2)
    cache.put(b"a", rows)
    rows.zero_()
    assert cache.get(b"a", torch.device("cpu")).sum() == 4
    empty = FeatureCache(0)
    empty.put(b"a", rows)
    assert len(empty) == 0


# The question.


def prompt_ids(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    return ids, tokenizer.convert_tokens_to_ids(VIDEO)


TURNS = (
    "<|im_start|> system you are helpful<|im_end|><|im_start|> user "
    f"what <|vision_start|>{VIDEO}<|vision_end|> is last ?<|im_end|><|im_start|> assistant "
)


def test_the_question_stands_around_the_video():
    tokenizer = make_tokenizer()
    ids, video = prompt_ids(tokenizer, TURNS)
    markers = {tokenizer.convert_tokens_to_ids(f"<|vision_{side}|>") for side in ("start", "end")}
    found = find_text(ids, tokenizer, video, (), markers=markers)
    assert tokenizer.convert_ids_to_tokens(list(found.ids)) == ["what", "is", "last", "?"]
    assert found.places == (-2, 2, 3, 4) and all(found.asking)
    named = find_text(ids, tokenizer, video, (), markers=markers, question="last ?")
    assert named.places == (3, 4)
    whole = find_text(ids, tokenizer, video, (), markers=markers, whole_prompt=True)
    assert len(whole.ids) == len(ids) - 1
    asking = [token for token, asks in zip(whole.ids, whole.asking, strict=True) if asks]
    assert asking == list(found.ids)


def test_a_prompt_of_placeholders_asks_anything_and_others_must_ask():
    tokenizer = make_tokenizer()
    ids, video = prompt_ids(tokenizer, f"<|vision_start|>{VIDEO}<|vision_end|>")
    markers = {ids[0], ids[-1]}
    assert find_text(ids, tokenizer, video, (), markers=markers) == STAND_IN
    ids, _ = prompt_ids(tokenizer, f"<|im_start|> user <|vision_start|>{VIDEO}<|vision_end|>")
    with pytest.raises(InvalidInputError, match="no question"):
        find_text(ids, tokenizer, video, (), markers=markers)
    with pytest.raises(InvalidInputError, match="no placeholder"):
        find_text(ids[:2], tokenizer, video, (), markers=markers)


# The choice: the same as beside a Hugging Face model.


def policies():
    torch.manual_seed(5)
    cross = CrossAttentionPolicy(
        CrossAttentionConfig(hidden_size=WIDTH, slots=0, slot_width=16, token_features=8,
                             frame_features=8, head_size=8)
    )  # fmt: skip
    own = SelfAttentionPolicy(
        SelfAttentionConfig(
            hidden_size=WIDTH, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
            rope_theta=10000.0, rms_norm_eps=1e-6,
        )
    )  # fmt: skip
    for module in (*cross.modules(), *own.modules()):
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=1.5 * module.in_features**-0.5)
    return [PolicyMethod(cross.eval()), PolicyMethod(own.eval()), get("cdpruner")]


@pytest.mark.parametrize("method", policies(), ids=lambda method: method.name)
@pytest.mark.parametrize("text", [QUESTIONS[0], QUESTIONS[1]])
def test_the_choice_is_that_of_prune_inputs(method, text):
    """LLaVA-OneVision: one axis of positions, which a `SelfAttentionPolicy` reads."""
    family, tokenizer, model = make("llava_onevision")
    inputs = family.make_inputs(tokenizer, [Request(text)])
    wanted = prune_inputs(model, inputs, method, 0.3, tokenizer=tokenizer)
    ids = inputs["input_ids"][0].tolist()
    video = tokenizer.convert_tokens_to_ids(VIDEO)
    first = ids.index(video)
    short = ids[: first + 1] + ids[first + ids.count(video) :]
    whole = isinstance(getattr(method, "policy", None), SelfAttentionPolicy)
    found = find_text(short, tokenizer, video, {video}, whole_prompt=whole)
    features = wanted.features
    rows, newline = features.rows[:-1], features.rows[-1:]
    (size,) = features.grid.sizes
    places = torch.tensor(found.places)
    reach = rows.shape[0] + 1
    embeds = model.get_input_embeddings()(torch.tensor(found.ids)).detach()
    with torch.inference_mode():
        selection = VideoPruner(method).choose(
            rows, torch.arange(rows.shape[0]), Grid([size]), 0.3, embeds,
            torch.where(places > 0, reach + places - 1, places), torch.tensor(found.asking),
            newline,
        )  # fmt: skip
    assert selection.counts == (Grid([size]).budgets(0.3))
    assert torch.equal(selection.keep, wanted.selection.keep)


@pytest.mark.parametrize("axes", [(), (3,)])
@pytest.mark.parametrize("method", [*policies()[:1], get("uniform")], ids=lambda m: m.name)
def test_without_a_question_there_is_a_choice(method, axes):
    """As vLLM's memory profiling asks for one."""
    rows = torch.randn(18, WIDTH, generator=torch.Generator().manual_seed(1))
    places = torch.arange(18).expand(*axes, -1)
    none = torch.empty(0, dtype=torch.int64)
    selection = VideoPruner(method).choose(
        rows, places, Grid([(2, 3, 3)]), 0.5, rows[:0], none.expand(*axes, -1), none.bool()
    )
    assert selection.counts == (9,) and bool((selection.keep.diff() > 0).all())


# The settings.


@pytest.fixture
def stored(tmp_path):
    method, *_ = policies()
    method.policy.save_pretrained(tmp_path / "policy")
    return tmp_path


def test_the_policy_beside_the_model_serves_unless_another_is_named(stored):
    beside = PluginSettings.of(SimpleNamespace(), str(stored))
    assert beside.policy == str(stored / "policy") and beside.reads() == Reading(True, False)
    assert isinstance(beside.load(WIDTH).policy, CrossAttentionPolicy)
    with pytest.raises(WrongBaseModelError, match="64"):
        beside.load(64)
    config = json.loads((stored / "policy" / "config.json").read_text())
    config["base_model"] = "owner/first"
    (stored / "policy" / "config.json").write_text(json.dumps(config))
    assert beside.load(WIDTH, "owner/first").policy.config.base_model == "owner/first"
    with pytest.raises(WrongBaseModelError, match="owner/second"):
        beside.load(WIDTH, "owner/second")
    named = PluginSettings.of(SimpleNamespace(cacovid={"policy": "uniform"}), "nowhere")
    assert named.reads() == Reading(False, False) and named.load(WIDTH).name == "uniform"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"no_such": 1}, "no_such.*expected some of policy"),
        ({"policy": 3}, "policy is 3"),
        ({"policy": "p", "feature_cache_gb": -1}, "feature_cache_gb is -1"),
        ({}, "no policy beside the model"),
    ],
)
def test_settings_that_cannot_be(given, words):
    with pytest.raises(InvalidInputError, match=words):
        PluginSettings.of(SimpleNamespace(cacovid=given), "nowhere")


@pytest.mark.parametrize("name", ["attention", "visionzip", "fastv", "hybrid"])
def test_methods_that_the_engine_cannot_feed(name):
    with pytest.raises(UnsupportedModelError, match=name):
        PluginSettings(name).reads()


def test_the_share_comes_from_the_flag():
    assert default_retention(SimpleNamespace(video_pruning_rate=0.9)) == 0.1
    for rate in (None, 0.0):
        with pytest.raises(InvalidInputError, match="--video-pruning-rate"):
            default_retention(SimpleNamespace(video_pruning_rate=rate))
