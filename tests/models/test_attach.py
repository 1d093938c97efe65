"""`attach`: the answers of `prune_inputs`, the original prompt in front, nothing left behind."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch

from cacovid.errors import InvalidInputError, UnsupportedModelError, WrongBaseModelError
from cacovid.models import attach, prune_inputs

NEW = {"max_new_tokens": 6, "do_sample": False}
QUESTIONS = ["what colour is the first thing ?", "which is last ? A . red B . green"]


@pytest.fixture(scope="module")
def batch(lab, processor):
    return lab.ask(processor, QUESTIONS, [lab.clip(i) for i in range(3)], [2, 1])


def answer(model, inputs, method="uniform", retention=0.3, **settings):
    pruned = prune_inputs(model, inputs, method, retention)
    out = model.generate(**pruned.inputs, **{**NEW, **settings})
    return out[:, pruned.inputs["input_ids"].shape[1] :]


def test_original_prompt_and_the_pruned_answer(model, batch):
    expected = answer(model, batch)
    with attach(model, "uniform", 0.3) as attached:
        out = model.generate(**batch, **NEW)
    width = batch["input_ids"].shape[1]
    assert torch.equal(out[:, :width], batch["input_ids"])
    assert torch.equal(out[:, width:], expected)
    assert attached.last.selection.counts == (8, 8, 8)


def test_keeping_everything_is_plain_generate(model, batch):
    plain = model.generate(**batch, **NEW)
    with attach(model, "uniform", 1.0):
        assert torch.equal(model.generate(**batch, **NEW), plain)


def test_prompt_by_place_and_dictionary_output(model, batch):
    expected = answer(model, batch, num_beams=2, num_return_sequences=2)
    rest = {k: v for k, v in batch.items() if k != "input_ids"}
    with attach(model, "uniform", 0.3):
        out = model.generate(
            batch["input_ids"], **rest, **NEW, num_beams=2, num_return_sequences=2,
            return_dict_in_generate=True,
        )  # fmt: skip
    width = batch["input_ids"].shape[1]
    assert torch.equal(out.sequences[:, width:], expected)
    assert torch.equal(out.sequences[:, :width], batch["input_ids"].repeat_interleave(2, dim=0))


def test_forward(model, batch):
    labels = batch["input_ids"].clone()
    pruned = prune_inputs(model, {**batch, "labels": labels}, "uniform", 0.3)
    expected = model(**pruned.forward_inputs)
    rest = {k: v for k, v in batch.items() if k != "input_ids"}
    with attach(model, "uniform", 0.3):
        out = model(batch["input_ids"], **rest, labels=labels)
        hidden = model.model(**batch).last_hidden_state
    assert torch.equal(out.logits, expected.logits)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(model.lm_head(hidden), expected.logits)


def test_lengths_count_the_original_prompt(model, batch):
    width = batch["input_ids"].shape[1]
    with attach(model, "uniform", 0.3):
        longest = model.generate(**batch, max_length=width + 3, do_sample=False)
    assert longest.shape[1] == width + 3


def test_text_alone_runs_as_ever(model, batch, tokenizer):
    text = tokenizer(["what is red ?"], return_tensors="pt")
    text.pop("token_type_ids", None)
    plain = model.generate(**text, **NEW)
    with attach(model, "uniform", 0.3) as attached:
        assert torch.equal(model.generate(**text, **NEW), plain)
        model(**text)
    assert attached.last is None


def test_streaming_from_a_thread(model, batch, tokenizer, lab, processor):
    from transformers import TextIteratorStreamer

    inputs = lab.ask(processor, QUESTIONS[:1], [lab.clip(0)])
    expected = tokenizer.decode(answer(model, inputs)[0])
    with attach(model, "uniform", 0.3) as attached:
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        worker = threading.Thread(
            target=attached.generate, kwargs={**inputs, **NEW, "streamer": streamer}
        )
        worker.start()
        text = "".join(streamer)
        worker.join()
    assert text.strip() == expected.strip()


def state(model):
    """Everything on the instance: attributes, and what the hook tables hold."""
    return {
        (id(module), name): copy.copy(value) if isinstance(value, dict) else value
        for module in (model, model.model)
        for name, value in vars(module).items()
    }


def test_leaving_restores_the_instance(model, batch):
    before, order = state(model), list(vars(model))
    kind = type(model)
    generate = kind.generate
    with attach(model, "uniform", 0.3):
        assert "generate" in vars(model)
        model.generate(**batch, **NEW)
        assert kind.generate is generate, "no class is touched"
    assert state(model) == before
    assert list(vars(model)) == order


def test_leaving_by_an_exception_restores_the_instance(model, batch):
    before = state(model)
    with pytest.raises(RuntimeError, match="mine"), attach(model, "uniform", 0.3):
        raise RuntimeError("mine")
    with pytest.raises(InvalidInputError), attach(model, "uniform", 0.3):
        model.generate(**{**batch, "attention_mask": batch["attention_mask"][:, 1:]}, **NEW)
    assert state(model) == before


def test_what_stood_on_the_instance_before_stands_again(model, batch):
    plain = model.generate

    def mine(*args, **kwargs):
        return plain(*args, **kwargs)

    model.generate = mine
    try:
        expected = answer(model, batch)
        with attach(model, "uniform", 0.3):
            out = model.generate(**batch, **NEW)
        assert vars(model)["generate"] is mine
    finally:
        del model.generate
    assert torch.equal(out[:, batch["input_ids"].shape[1] :], expected)


@pytest.mark.filterwarnings("ignore:nothing was pruned")
def test_another_instance_is_left_alone(model, batch, lab, tokenizer):
    other = lab.make_model(tokenizer)
    plain = other.generate(**batch, **NEW)
    with attach(model, "uniform", 0.1):
        assert torch.equal(other.generate(**batch, **NEW), plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"prefill_chunk_size": 8},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
        {"custom_generate": "somewhere"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_are_not_exact(model, batch, settings):
    from transformers import GenerationConfig

    name = next(iter(settings))
    with attach(model, "uniform", 0.3), pytest.raises(UnsupportedModelError, match=name):
        model.generate(**batch, **NEW, **settings)
    if name != "custom_generate":
        config = GenerationConfig(**settings)
        with attach(model, "uniform", 0.3), pytest.raises(UnsupportedModelError, match=name):
            model.generate(**batch, max_new_tokens=2, generation_config=config)


def test_caches(model, batch):
    from transformers import CompileConfig, DynamicCache, StaticCache

    expected = answer(model, batch)
    with attach(model, "uniform", 0.3):
        cache = DynamicCache(config=model.config.text_config)
        out = model.generate(**batch, **NEW, past_key_values=cache)
        assert torch.equal(out[:, batch["input_ids"].shape[1] :], expected)
        with pytest.raises(UnsupportedModelError, match="empty DynamicCache"):
            model.generate(**batch, **NEW, past_key_values=cache)
        static = StaticCache(config=model.config.text_config, max_cache_len=64)
        with pytest.raises(UnsupportedModelError, match="StaticCache"):
            model.generate(**batch, **NEW, past_key_values=static)
        with pytest.raises(UnsupportedModelError, match="compile_config"):
            model.generate(**batch, **NEW, compile_config=CompileConfig())
        with pytest.raises(UnsupportedModelError, match="own decoding loop"):
            model(**batch, past_key_values=DynamicCache(config=model.config.text_config))


def test_a_video_that_cannot_be_seen(model, batch):
    embeds = prune_inputs(model, batch, "uniform", 1.0).inputs["inputs_embeds"]
    with attach(model, "uniform", 0.3):
        for call in (model.generate, model, model.model):
            with pytest.raises(UnsupportedModelError, match="inputs_embeds"):
                call(inputs_embeds=embeds)
        with pytest.raises(UnsupportedModelError, match="mm_encoder_outputs"):
            model.generate(input_ids=batch["input_ids"], mm_encoder_outputs={"video": 1})


def test_a_generate_kept_from_before_is_never_silently_uncompressed(model, batch):
    kept = model.generate
    with attach(model, "uniform", 0.3), pytest.raises(UnsupportedModelError):
        kept(**batch, **NEW)


@pytest.mark.filterwarnings("ignore:nothing was pruned")
def test_entering_with_something_wrong(model, lab, tokenizer):
    before = state(model)
    with attach(model, "uniform", 0.3):
        with pytest.raises(UnsupportedModelError, match="attached already"):
            attach(model, "uniform", 0.3).__enter__()
        assert "generate" in vars(model)
    with pytest.raises(InvalidInputError, match="retention"):
        attach(model, "uniform", 0.0).__enter__()
    with pytest.raises(InvalidInputError, match="unknown method"):
        attach(model, "nothing", 0.3).__enter__()
    other = lab.make_model(tokenizer)
    with pytest.raises(UnsupportedModelError, match="compile"):
        attach(torch.compile(other, backend="eager"), "uniform", 0.3).__enter__()
    other.compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match="compile"):
        attach(other, "uniform", 0.3).__enter__()
    policy = torch.nn.Identity()
    policy.config = type("Config", (), {"hidden_size": 64, "base_model": "a/b"})()
    with pytest.raises(WrongBaseModelError, match="a/b"):
        attach(model, policy, 0.3).__enter__()
    assert state(model) == before


def test_attach_without_with_says_that_nothing_is_pruned(model, batch):
    with pytest.warns(RuntimeWarning, match="write `with cacovid.attach") as told:
        attach(model, "uniform", 0.3)
    assert told[0].filename == __file__ and "generate" not in vars(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached = attach(model, "uniform", 0.3)
        with attached:
            model.generate(**batch, **NEW)
        del attached
