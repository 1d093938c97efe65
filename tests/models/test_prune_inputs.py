"""`prune_inputs`: exact against plain generate, a hand-built prompt, and one prompt at a time."""

from __future__ import annotations

import pytest
import torch

from cacovid.errors import InvalidInputError, UnsupportedModelError, WrongBaseModelError
from cacovid.models import prune_inputs
from cacovid.types import Scores

NEW = {"max_new_tokens": 8, "do_sample": False}
QUESTIONS = ["what colour is the first thing ?", "which is last ? A . red B . green", "what ?"]


@pytest.fixture(scope="module")
def batch(lab, processor):
    """Three prompts of different length with two, one and one videos."""
    return lab.ask(processor, QUESTIONS, [lab.clip(i) for i in range(4)], [2, 1, 1])


def alone(batch, row, videos):
    """One prompt of a batch, without padding."""
    mask = batch["attention_mask"][row].bool()
    return {
        "input_ids": batch["input_ids"][row : row + 1, mask],
        "attention_mask": batch["attention_mask"][row : row + 1, mask],
        "pixel_values_videos": batch["pixel_values_videos"][videos],
    }


def answers(model, inputs, **settings):
    out = model.generate(**inputs, **{**NEW, **settings})
    return out[:, inputs["input_ids"].shape[1] :]


def test_keeping_everything_is_plain_generate(model, batch, tokenizer):
    pruned = prune_inputs(model, batch, "attention", 1.0, tokenizer=tokenizer)
    assert pruned.removed == 0
    plain = model.generate(**batch, **NEW)
    assert torch.equal(model.generate(**pruned.inputs, **NEW), plain)
    answer = plain[:, batch["input_ids"].shape[1] :]
    assert len({tuple(row) for row in answer.tolist()}) == 3, "the answers hang on the prompts"


def test_keeping_everything_gives_the_same_logits(model, batch, tokenizer):
    pruned = prune_inputs(model, batch, "uniform", 1.0)
    shown = batch["attention_mask"].bool()
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    plain = model(**batch, position_ids=positions).logits
    mine = model(**pruned.forward_inputs).logits
    torch.testing.assert_close(mine[shown], plain[shown], rtol=0, atol=1e-6)


def test_pruning_changes_the_logits(model, batch, tokenizer):
    pruned = prune_inputs(model, batch, "uniform", 0.1)
    change = model(**pruned.forward_inputs).logits[:, -1] - model(**batch).logits[:, -1]
    assert change.abs().max() > 1e-2


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_equals_a_prompt_built_by_hand(model, lab, processor, positions):
    inputs = lab.ask(processor, [QUESTIONS[0]], [lab.clip(5)])
    keep = [0, 4, 13, 26]
    pruned = prune_inputs(model, inputs, lab.HandPicked(keep, [4]), 4 / 27, positions=positions)

    ids = inputs["input_ids"][0]
    first = int((ids == model.config.video_token_id).nonzero()[0])
    newline = first + 27
    with torch.no_grad():
        features = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output
        words = model.get_input_embeddings()(ids)
        rows = [*words[:first], *(features[0, i] for i in keep)]
        rows += [model.model.image_newline, *words[newline + 1 :]]
        columns = [*range(first), *(first + i for i in keep), *range(newline, len(ids))]
        place = columns if positions == "original" else list(range(len(columns)))
        expected = model(
            inputs_embeds=torch.stack(rows)[None],
            attention_mask=torch.ones(1, len(rows), dtype=torch.int64),
            position_ids=torch.tensor([place]),
        ).logits
        mine = model(**pruned.forward_inputs).logits
    assert pruned.inputs["position_ids"].tolist() == [place]
    assert pruned.inputs["input_ids"].tolist() == [ids[columns].tolist()]
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_cached_decoding_equals_recomputation(model, batch, tokenizer, positions):
    pruned = prune_inputs(model, batch, "attention", 0.3, positions=positions, tokenizer=tokenizer)
    out = model.generate(**pruned.inputs, **NEW, return_dict_in_generate=True, output_logits=True)
    start = pruned.inputs["input_ids"].shape[1]
    new = out.sequences[:, start:]
    begin = pruned.inputs["position_ids"][:, -1:] + 1
    if positions == "original":
        # Decoding goes on from the uncompressed prompt's next position.
        assert begin.flatten().tolist() == batch["attention_mask"].sum(-1).tolist()
    with torch.no_grad():
        again = model(
            inputs_embeds=torch.cat(
                (pruned.inputs["inputs_embeds"], model.get_input_embeddings()(new)), dim=1
            ),
            attention_mask=torch.cat(
                (pruned.inputs["attention_mask"], torch.ones_like(new)), dim=1
            ),
            position_ids=torch.cat(
                (pruned.inputs["position_ids"], begin + torch.arange(new.shape[1])), dim=1
            ),
            use_cache=False,
        ).logits[:, start - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), again, rtol=0, atol=1e-5)
    assert torch.equal(again.argmax(-1), new)


@pytest.mark.parametrize("method", ["attention", "attention:2:question", "uniform"])
def test_ragged_batch_equals_one_by_one(model, batch, tokenizer, method):
    together = prune_inputs(model, batch, method, 0.3, tokenizer=tokenizer)
    got = answers(model, together.inputs)
    kept = torch.split(together.selection.keep, together.selection.counts)
    for row, videos in enumerate(([0, 1], [2], [3])):
        single = prune_inputs(model, alone(batch, row, videos), method, 0.3, tokenizer=tokenizer)
        grid = together.selection.grid.host_video_offsets
        expected = torch.cat([kept[v] - grid[v] + 27 * i for i, v in enumerate(videos)])
        assert torch.equal(single.selection.keep, expected)
        assert torch.equal(answers(model, single.inputs)[0], got[row])


def test_retention_per_video(model, batch):
    pruned = prune_inputs(model, batch, "random", [0.1, 1.0, 0.5, 0.04], seed=3)
    assert pruned.selection.counts == (2, 27, 13, 1)
    assert pruned.tokens == {"video": 108, "kept": 43}
    # Text, newline and kept tokens; the first prompt has two videos.
    newlines = (pruned.inputs["input_ids"] == model.config.video_token_id).sum(-1)
    assert newlines.tolist() == [2 + 27 + 2, 13 + 1, 1 + 1]
    assert pruned.removed == 27 * 4 + 4 - 43 - 4 - sum((27 - 13, 27 - 1))
    assert set(pruned.timings) == {"vision", "score+select"}


def test_seed_decides_what_is_drawn(model, batch):
    keep = [prune_inputs(model, batch, "random", 0.3, seed=s).selection.keep for s in (1, 1, 2)]
    assert torch.equal(keep[0], keep[1])
    assert not torch.equal(keep[0], keep[2])


def test_right_padding_is_the_same_prompt(model, batch, tokenizer):
    shifts = (batch["attention_mask"] == 0).sum(-1)
    turned = dict(batch)
    for name in ("input_ids", "attention_mask"):
        rows = [torch.roll(row, -int(s)) for row, s in zip(batch[name], shifts, strict=True)]
        turned[name] = torch.stack(rows)
    left = prune_inputs(model, batch, "attention", 0.3, tokenizer=tokenizer)
    right = prune_inputs(model, turned, "attention", 0.3, tokenizer=tokenizer)
    for name in ("input_ids", "attention_mask", "position_ids", "inputs_embeds"):
        assert torch.equal(left.inputs[name], right.inputs[name]), name


def test_videos_of_different_length(model, lab, processor, tokenizer):
    inputs = lab.ask(processor, QUESTIONS[:2], [lab.clip(1, 2), lab.clip(2, 5)])
    assert isinstance(inputs["pixel_values_videos"], list)
    pruned = prune_inputs(model, inputs, "attention", 0.5, tokenizer=tokenizer)
    assert pruned.selection.grid.sizes == ((2, 3, 3), (5, 3, 3))
    assert pruned.selection.counts == (9, 22)
    got = answers(model, pruned.inputs)
    for row in range(2):
        single = lab.ask(processor, [QUESTIONS[row]], [lab.clip(row + 1, (2, 5)[row])])
        single = prune_inputs(model, single, "attention", 0.5, tokenizer=tokenizer)
        assert torch.equal(answers(model, single.inputs)[0], got[row])


def test_images_beside_a_video_are_kept(model, lab, processor, tokenizer):
    inputs = dict(lab.ask(processor, [QUESTIONS[0]], [lab.clip(7)]))
    # 36 base tokens, 6 x 6 of the one tile, 6 line ends.
    image = torch.full((1, 78), model.config.image_token_id)
    inputs["input_ids"] = torch.cat((image, inputs["input_ids"]), dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["pixel_values"] = torch.rand(1, 2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    inputs["image_sizes"] = torch.tensor([[24, 24]])
    pruned = prune_inputs(model, inputs, "uniform", 1.0)
    assert torch.equal(model.generate(**pruned.inputs, **NEW), model.generate(**inputs, **NEW))
    pruned = prune_inputs(model, inputs, "uniform", 0.1)
    assert (pruned.inputs["input_ids"] == model.config.image_token_id).sum() == 78


def test_merged_tokens_take_the_kept_places(model, lab, processor):
    inputs = lab.ask(processor, [QUESTIONS[0]], [lab.clip(5)])
    merged = torch.randn(2, 32)
    pruned = prune_inputs(model, inputs, lab.HandPicked([3, 20], [2], merged), 2 / 27)
    video = (pruned.inputs["input_ids"][0] == model.config.video_token_id).nonzero().flatten()
    assert torch.equal(pruned.inputs["inputs_embeds"][0, video[:2]], merged)
    assert torch.equal(pruned.inputs["inputs_embeds"][0, video[2]], model.model.image_newline)


def test_labels_are_shortened_alike(model, batch):
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    pruned = prune_inputs(model, {**batch, "labels": labels}, "uniform", 0.2)
    shown = pruned.inputs["attention_mask"].bool()
    assert torch.equal(pruned.inputs["labels"][shown], pruned.inputs["input_ids"][shown])
    assert (pruned.inputs["labels"][~shown] == -100).all()
    assert torch.isfinite(model(**pruned.forward_inputs).loss)


def test_given_positions_are_kept(model, batch):
    shifted = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0) + 7
    pruned = prune_inputs(model, {**batch, "position_ids": shifted}, "uniform", 0.2)
    plain = prune_inputs(model, batch, "uniform", 0.2)
    shown = plain.inputs["attention_mask"].bool()
    moved = pruned.inputs["position_ids"] - plain.inputs["position_ids"]
    assert (moved[shown] == 7).all()


@pytest.mark.parametrize(
    "settings", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}]
)
def test_beam_search_of_a_batch_equals_one_by_one(model, batch, tokenizer, settings):
    pruned = prune_inputs(model, batch, "attention", 0.3, tokenizer=tokenizer)
    got = answers(model, pruned.inputs, **settings)
    each = settings.get("num_return_sequences", 1)
    for row, videos in enumerate(([0, 1], [2], [3])):
        single = prune_inputs(
            model, alone(batch, row, videos), "attention", 0.3, tokenizer=tokenizer
        )
        expected = answers(model, single.inputs, **settings)
        assert torch.equal(expected, got[row * each : (row + 1) * each])


def test_returned_sequences_are_those_of_repeated_prompts(model, batch):
    pruned = prune_inputs(model, batch, "uniform", 0.3)
    sampling = {"do_sample": True, "top_k": 8}
    torch.manual_seed(0)
    got = answers(model, pruned.inputs, num_return_sequences=3, **sampling)
    repeated = {
        name: None if value is None else value.repeat_interleave(3, dim=0)
        for name, value in pruned.inputs.items()
    }
    torch.manual_seed(0)
    assert torch.equal(answers(model, repeated, **sampling), got)
    assert len({tuple(row) for row in got.tolist()}) > 3


def test_static_cache(model, batch):
    pruned = prune_inputs(model, batch, "uniform", 0.3)
    expected = answers(model, pruned.inputs)
    got = answers(model, pruned.inputs, cache_implementation="static")
    assert torch.equal(got, expected)


def test_cache_switched_off_changes_nothing(model, batch):
    pruned = prune_inputs(model, batch, "uniform", 0.3)
    got = answers(model, pruned.inputs, use_cache=False)
    assert torch.equal(got, answers(model, pruned.inputs))


def test_streaming(model, lab, processor, tokenizer):
    from transformers import TextStreamer

    class Collect(TextStreamer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.text = ""

        def on_finalized_text(self, text, stream_end=False):
            self.text += text

    inputs = lab.ask(processor, [QUESTIONS[1]], [lab.clip(3)])
    pruned = prune_inputs(model, inputs, "attention", 0.3, tokenizer=tokenizer)
    streamer = Collect(tokenizer, skip_prompt=True)
    out = answers(model, pruned.inputs, streamer=streamer)
    assert streamer.text.strip() == tokenizer.decode(out[0]).strip()


def test_chunked_prefill_is_never_silently_wrong(model, batch):
    from transformers import GenerationConfig

    pruned = prune_inputs(model, batch, "uniform", 0.3)
    expected = answers(model, pruned.inputs)
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        model.generate(**pruned.inputs, **NEW, prefill_chunk_size=8)
    config = GenerationConfig(prefill_chunk_size=8, max_new_tokens=8, do_sample=False)
    try:
        out = model.generate(**pruned.inputs, generation_config=config)
    except (RuntimeError, ValueError):
        pass
    else:
        assert torch.equal(out[:, pruned.inputs["input_ids"].shape[1] :], expected)
    model.generation_config.prefill_chunk_size = 8
    try:
        with pytest.raises(UnsupportedModelError, match="prefill_chunk_size is 8"):
            prune_inputs(model, batch, "uniform", 0.3)
    finally:
        model.generation_config.prefill_chunk_size = None


def test_the_inner_model_is_found(model):
    from cacovid.models import adapter_for

    adapter = adapter_for(model)
    assert adapter.inner_model(model) is model.model
    assert adapter.inner_model(model.model) is model.model
    assert adapter.inner_model(torch.nn.Sequential(model)) is model.model
    with pytest.raises(UnsupportedModelError, match="holds no module"):
        adapter.inner_model(torch.nn.Linear(2, 2))


class Policy(torch.nn.Module):
    """Scores by a projection; its configuration is what a policy's has to have."""

    def __init__(self, width, bad=False):
        super().__init__()
        from types import SimpleNamespace

        self.config = SimpleNamespace(
            hidden_size=width, policy_share=0.5, base_model="someone/other-model"
        )
        self.bad = bad

    def forward(self, prompt):
        token = prompt.video_embeds.sum(-1).float()
        if self.bad:
            token = token.index_fill(0, torch.tensor([5]), float("nan"))
        return Scores(token, torch.zeros(prompt.grid.num_frames))


def test_a_policy(model, batch, tokenizer):
    from cacovid.ops import select_tokens

    pruned = prune_inputs(model, batch, Policy(32), 0.3, tokenizer=tokenizer)
    keep = select_tokens(
        pruned.scores.token, pruned.scores.frame, pruned.selection.grid, 0.3, policy_share=0.5
    )
    assert torch.equal(pruned.selection.keep, keep)
    assert "tensor(" not in repr(pruned) and len(repr(pruned)) < 500


def test_a_policy_for_another_model(model, batch, tokenizer):
    with pytest.raises(WrongBaseModelError, match=r"someone/other-model.* 48; .* hidden size 32"):
        prune_inputs(model, batch, Policy(48), 0.3, tokenizer=tokenizer)


def test_nan_scores(model, batch, tokenizer):
    with pytest.raises(InvalidInputError, match="NaN"):
        prune_inputs(model, batch, Policy(32, bad=True), 0.3, tokenizer=tokenizer)


def test_a_wrong_number_of_tokens(model, batch, lab):
    with pytest.raises(InvalidInputError, match="budget"):
        prune_inputs(model, batch, lab.HandPicked([0, 30, 60, 90], [1, 1, 1, 1]), 0.3)


@pytest.mark.parametrize("retention", [0.0, 1.5, -0.1, float("nan"), [0.5, 0.5]])
def test_wrong_retention(model, batch, retention):
    with pytest.raises(InvalidInputError, match="retention"):
        prune_inputs(model, batch, "uniform", retention)


def test_unsupported_model():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    text = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1, num_key_value_heads=1)
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"'qwen2'.*supported: .*llava_onevision"):
        prune_inputs(text, {"input_ids": torch.zeros(1, 4, dtype=torch.int64)}, "uniform", 0.5)
    with pytest.raises(UnsupportedModelError, match=r"no config\.model_type"):
        prune_inputs(torch.nn.Linear(2, 2), {}, "uniform", 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values_videos": None}, "no video"),
        ({"pixel_values_videos": torch.zeros(3, 24, 24)}, "expected .V, F, 3, H, W"),
        ({"inputs_embeds": torch.zeros(1, 4, 32)}, "inputs_embeds cannot be pruned"),
        ({"mm_encoder_outputs": {}}, "mm_encoder_outputs cannot be pruned"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask"),
        ({"input_ids": torch.zeros(5)}, "input_ids"),
    ],
)
def test_inputs_that_cannot_be_pruned(model, batch, change, message):
    with pytest.raises(InvalidInputError, match=message):
        prune_inputs(model, {**batch, **change}, "uniform", 0.5)


def test_truncated_prompt(model, batch):
    cut = {**batch, "input_ids": batch["input_ids"][:, 40:],
           "attention_mask": batch["attention_mask"][:, 40:]}  # fmt: skip
    with pytest.raises(InvalidInputError, match="placeholders and features do not match"):
        prune_inputs(model, cut, "uniform", 0.5)


def test_unknown_choosers(model, batch):
    for chooser, message in (("attntion", "did you mean"), (7, "does not choose tokens"),
                             ("no/such/folder", "no policy directory")):  # fmt: skip
        with pytest.raises(InvalidInputError, match=message):
            prune_inputs(model, batch, chooser, 0.5)
    for chooser, message in ((__file__, "is a file"), ("", "empty name")):
        with pytest.raises(InvalidInputError, match=message):
            prune_inputs(model, batch, chooser, 0.5)
    with pytest.raises(InvalidInputError, match="positions is 'sideways'"):
        prune_inputs(model, batch, "uniform", 0.5, positions="sideways")
