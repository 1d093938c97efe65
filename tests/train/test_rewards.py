"""Rewards against the model's own answers to prompts that `prune_inputs` makes."""

import dataclasses

import pytest
import torch

from cacovid.errors import InvalidInputError
from cacovid.models.inputs import video_inputs
from cacovid.train.marking import mark
from cacovid.train.rewards import LocalReward
from cacovid.types import Selection


@pytest.fixture(scope="module")
def masks():
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([[0.01, 0.1, 0.5, 0.02, 1.0]]).T
    masks = torch.rand((5, 576), generator=generator) < shares
    masks[:, 0] = True
    return masks


def one_by_one(model, encoder, sample, masks, tokens):
    """Greedy answers from prompts shortened by the adapter, one at a time, with their logits."""
    texts, logits = [], []
    for mask in masks:
        keep = mask.nonzero().flatten()
        frames = encoder.read_frames(sample)
        inputs = video_inputs(model, encoder.processor, frames, sample.problem)
        embedded = encoder._adapter.embed(model, inputs)
        selection = Selection(keep, embedded.prompt.grid, (len(keep),))
        pruned = encoder._adapter.prune(embedded, selection)
        out = model.generate(**pruned, max_new_tokens=tokens, do_sample=False)
        new = out[0, pruned["input_ids"].shape[1] :]
        texts.append(encoder.processor.tokenizer.decode(new, skip_special_tokens=True))
        names = ("inputs_embeds", "attention_mask", "position_ids")
        with torch.no_grad():
            logits.append(model(**{n: pruned[n] for n in names}).logits[0, -1].float())
    return texts, torch.stack(logits)


def choice(samples):
    return next(s for s in samples if s.options)


def open_question(samples):
    return next(s for s in samples if not s.options)


def test_letters_are_those_of_one_prompt_at_a_time(model, encoder, samples, masks):
    sample = choice(samples)
    prepared = encoder(sample)
    _, logits = one_by_one(model, encoder, sample, masks, 1)
    letters = [chr(ord("A") + i) for i in range(len(sample.options))]
    ids = encoder.processor.tokenizer.convert_tokens_to_ids(letters)
    log = torch.log_softmax(logits[:, ids], dim=1)[:, letters.index(sample.solution)]
    for kind, expected in (
        ("log_probability", log),
        ("probability", log.exp()),
        ("correct", (logits[:, ids].argmax(1) == letters.index(sample.solution)).float()),
    ):
        for batch_tokens in (10_000, 700):
            rewards = LocalReward(encoder, kind=kind, batch_tokens=batch_tokens)(prepared, masks)
            torch.testing.assert_close(rewards.value, expected, rtol=1e-3, atol=1e-4)


def test_generated_answers_are_marked(model, encoder, samples, masks):
    sample = open_question(samples)
    texts, _ = one_by_one(model, encoder, sample, masks, 3)
    assert len(set(texts)) > 1
    sample = dataclasses.replace(sample, solution=texts[1], problem_type="exact")
    prepared = encoder(sample)
    rewards = LocalReward(encoder, max_new_tokens=3)(prepared, masks)
    assert rewards.value.tolist() == [mark(text, texts[1], "exact") for text in texts]
    assert 0.0 < float(rewards.value.mean()) < 1.0


def test_forced_answers_are_what_greedy_decoding_would_say(model, encoder, samples, masks):
    sample = open_question(samples)
    _, logits = one_by_one(model, encoder, sample, masks, 1)
    said = encoder.processor.tokenizer.convert_ids_to_tokens(logits.argmax(1))
    sample = dataclasses.replace(sample, solution=said[1])
    forced = LocalReward(encoder, free_text="forced")(encoder(sample), masks)
    graded = LocalReward(encoder, kind="log_probability")(encoder(sample), masks)
    first = torch.tensor([word == said[1] for word in said])
    assert bool((forced.correct.bool() <= first).all())
    assert bool((graded.value < 0).all()) and torch.equal(graded.correct, forced.correct)


def test_a_forced_answer_that_the_model_says_and_ends_is_right(
    model, encoder, samples, masks, monkeypatch
):
    sample = open_question(samples)
    texts, _ = one_by_one(model, encoder, sample, masks, 2)
    tokenizer = encoder.processor.tokenizer
    said = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    solution, end = said[1]
    # The end of an answer is what the model says second: then it says this answer and no more.
    monkeypatch.setattr(model.generation_config, "eos_token_id", end)
    sample = dataclasses.replace(sample, solution=tokenizer.decode([solution]))
    prepared = encoder(sample)
    expected = [float(two == [solution, end]) for two in said]
    assert sorted(set(expected)) == [0.0, 1.0]
    forced = LocalReward(encoder, free_text="forced")(prepared, masks)
    assert forced.correct.tolist() == forced.value.tolist() == expected


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("how", ["choice", "forced", "generate", "target"])
def test_logits_that_are_no_numbers_are_refused(model, encoder, samples, masks, how, broken):
    sample = choice(samples) if how == "choice" else open_question(samples)
    prepared = encoder(sample)
    reward = LocalReward(encoder, free_text="forced" if how == "forced" else "generate")
    read = reward.read_target if how == "target" else reward

    def spoil(_module, _args, logits):
        return logits.index_fill(0, torch.tensor([len(logits) - 1]), broken)  # of one rollout

    with (
        model.get_output_embeddings().register_forward_hook(spoil),
        pytest.raises(InvalidInputError, match=r"NaN or infinite.* float16") as caught,
    ):
        read(prepared, masks)
    assert repr(sample.id) in str(caught.value) and "runs in float32" in str(caught.value)
    read(prepared, masks)


@pytest.mark.parametrize("find", [choice, open_question])
def test_a_blind_reader_without_numbers_is_refused(model, processor, samples, find):
    from cacovid.train.filtering import BlindReader

    sample = find(samples)
    with (
        model.get_output_embeddings().register_forward_hook(lambda _m, _a, out: out / 0.0),
        pytest.raises(InvalidInputError, match="NaN or infinite") as caught,
    ):
        BlindReader(model, processor, 3)(sample)
    assert repr(sample.id) in str(caught.value)


def test_the_vision_tower_runs_once_per_video(model, encoder, samples):
    from cacovid.train.encoding import SampleEncoder

    reads = []

    def read(sample):
        reads.append(sample.id)
        return encoder.read_frames(sample)

    own = SampleEncoder(model, encoder.processor, read, cached_videos=1)
    first, second = samples[0], samples[1]
    assert first.video_key == second.video_key != samples[4].video_key
    a = own(first)
    b = own(second)
    again = own(first)
    assert reads == [first.id]
    assert torch.equal(a.prompt.embeds, again.prompt.embeds)
    assert torch.equal(a.prompt.video_embeds, b.prompt.video_embeds)
    assert a.sample.problem != b.sample.problem
    fresh = SampleEncoder(model, encoder.processor, encoder.read_frames, cached_videos=0)(second)
    assert torch.equal(fresh.prompt.embeds, b.prompt.embeds)
    own(samples[4])
    own(first)
    assert len(reads) == 3


@pytest.mark.parametrize("settings", [{"kind": "best"}, {"free_text": "guess"}])
def test_unknown_settings(encoder, settings):
    with pytest.raises(InvalidInputError, match="expected one of"):
        LocalReward(encoder, **settings)


def test_letters_that_the_tokenizer_does_not_tell_apart_are_refused(encoder):
    from cacovid.train.data import Samples, TrainingSample
    from cacovid.train.run import check_answerable

    tokenizer = encoder.processor.tokenizer
    many = tuple(f"option {n}" for n in range(26))
    sample = TrainingSample("1", "?", "A", "multiple choice", options=many)
    with pytest.raises(InvalidInputError, match="cannot tell the letters A to Z apart"):
        check_answerable(Samples((sample,)), tokenizer)
    few = dataclasses.replace(sample, options=many[:4])
    check_answerable(Samples((few,)), tokenizer)
    assert len(set(tokenizer.convert_tokens_to_ids(list(few.letters)))) == 4


def test_packages_for_marks_are_looked_for_before_a_run(monkeypatch):
    from cacovid.errors import MissingDependencyError
    from cacovid.train import marking

    marking.check_packages(["OCR", "free-form", "exact"])
    monkeypatch.setattr(marking, "find_spec", lambda name: None)
    marking.check_packages(["exact", "numerical"])
    with pytest.raises(MissingDependencyError, match=r"OCR problems need jiwer; install cacovid"):
        marking.check_packages(["exact", "OCR"])


def test_an_unreadable_video_does_not_end_an_evaluation(encoder, policy, samples):
    from cacovid.errors import VideoReadError
    from cacovid.methods import PolicyMethod
    from cacovid.train.evaluation import evaluate_greedy
    from cacovid.train.rewards import Rewards

    class Half:
        bad: tuple[str, ...] = (samples[1].id,)

        def prepare(self, sample):
            if sample.id in self.bad:
                raise VideoReadError(f"{sample.id}: truncated")
            return encoder(sample)

        def __call__(self, prepared, rollouts):
            ones = torch.ones(len(rollouts))
            return Rewards(ones, ones)

    reward = Half()
    found = evaluate_greedy(PolicyMethod(policy), reward, samples[:3], 0.1)
    assert found.marks == (1.0, 1.0) and found.kinds == (samples[0].kind, samples[2].kind)
    assert found.unreadable == ((samples[1].id, f"{samples[1].id}: truncated"),)
    reward.bad = tuple(sample.id for sample in samples)
    with pytest.raises(VideoReadError, match=r"none of the 3 videos .* truncated"):
        evaluate_greedy(PolicyMethod(policy), reward, samples[:3], 0.1)
