"""The tiny model's training on a few clips: packing, resuming, the tokenizer."""

import numpy as np
import pytest
import torch

from cacovid.synthetic import make_scene, sample_questions, world
from cacovid.synthetic.tiny.curriculum import LanguageRecipe, LanguageStage
from cacovid.synthetic.tiny.data import describe
from cacovid.synthetic.tiny.language import train_language
from cacovid.synthetic.tiny.model import TEXT_WIDTH, build_model
from cacovid.synthetic.tiny.packed_questions import QuestionWriter, build_batch
from cacovid.synthetic.tiny.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_model(tokenizer).eval()


@pytest.fixture(scope="module")
def scenes():
    return [make_scene("train", 9, index) for index in range(3)]


def features(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, world.CLIP_TOKENS, TEXT_WIDTH, generator=generator)


def test_no_question_of_any_split_has_an_unknown_word(tokenizer):
    for split in ("train", "test", "shifted"):
        for question in make_scene(split, 1, 0).questions:
            ids = tokenizer(question.text).input_ids
            assert tokenizer.unk_token_id not in ids, question.text
            assert question.answer in tokenizer.get_vocab()


def test_both_spellings_of_colour_are_one_word(tokenizer):
    one, other = tokenizer("What colour is it?").input_ids, tokenizer("what color is it?").input_ids
    assert one == other


def test_letters_are_no_articles(tokenizer):
    ids = tokenizer("A. a red star").input_ids
    assert ids[0] == tokenizer.convert_tokens_to_ids("A") and ids[2] != ids[0]


def test_the_packed_prompt_is_the_chat_template(model, tokenizer, scenes):
    question = sample_questions(scenes[0], 1, np.random.default_rng(0))[0]
    content = [{"type": "video"}, {"type": "text", "text": question.text}]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    written = tokenizer(prompt, add_special_tokens=False).input_ids
    writer = QuestionWriter(tokenizer)
    text, answer = writer([question])[0]
    assert written == [*writer.prefix, model.config.video_token_id, *text]
    assert answer[1] == tokenizer.eos_token_id


@torch.no_grad()
def test_no_packed_question_sees_another(model, tokenizer, scenes):
    writer, video = QuestionWriter(tokenizer), features(1)
    asked = sample_questions(scenes[0], 5, np.random.default_rng(0))
    keep = [np.sort(np.random.default_rng(1).permutation(world.CLIP_TOKENS)[:60])]

    def states(group):
        batch = build_batch(model, writer, video, keep, [group])
        hidden = model.model.language_model(
            inputs_embeds=batch.embeds, attention_mask=batch.mask, position_ids=batch.positions
        ).last_hidden_state
        return hidden[batch.answer_at[:, 0], batch.answer_at[:, 1]]

    together = states(asked)
    alone = torch.cat([states([question]) for question in asked])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tokenizer, scenes, tmp_path):
    clips = [describe(scene) for scene in scenes]
    video = features(3).half()
    first = LanguageStage(2, ("colour", "shape"), 3, 0.0, (0.02, 0.02))
    second = LanguageStage(4, ("pattern", "order"), 3, 0.5, (0.03, 1.0), auxiliary_weight=0.2)
    recipe = LanguageRecipe(stages=(first, second), batch=2, checkpoint_every=2, compile=False)

    class Stopped(Exception):
        pass

    class StopsInStageTwo(list):
        reads = 0

        def __getitem__(self, index):
            StopsInStageTwo.reads += 1
            if StopsInStageTwo.reads > 9:
                raise Stopped
            return super().__getitem__(index)

    def trained(folder, data):
        model = build_model(tokenizer)
        train_language(model, tokenizer, data, video, folder, recipe)
        return model.state_dict()

    with pytest.raises(Stopped):
        trained(tmp_path / "stopped", StopsInStageTwo(clips))
    resumed = trained(tmp_path / "stopped", clips)
    through = trained(tmp_path / "through", clips)
    assert all(torch.equal(resumed[name], through[name]) for name in through)


@torch.no_grad()
def test_scaling_the_projector_scales_the_features(tokenizer):
    from cacovid.synthetic.tiny.recipe import scale_projector
    from cacovid.synthetic.tiny.vision import video_features

    model = build_model(tokenizer).eval()
    frames = make_scene("train", 9, 0).rendering.frames[None, :2]
    before = video_features(model, frames)
    scale_projector(model, 0.25)
    torch.testing.assert_close(video_features(model, frames), 0.25 * before)
