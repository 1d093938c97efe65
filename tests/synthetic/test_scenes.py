"""The generator: what a scene promises, checked on scenes of every split."""

import numpy as np
import pytest

from cacovid.errors import InvalidInputError
from cacovid.synthetic import SPLITS, make_scene, world
from cacovid.synthetic.tiny.choices import CHOICES, object_tokens
from cacovid.synthetic.tiny.data import through_h264

SCENES = [make_scene(split, 0, index) for split in SPLITS for index in range(3)]


@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_is_a_function_of_split_seed_and_index(split):
    first, again = make_scene(split, 1, 5), make_scene(split, 1, 5)
    assert np.array_equal(first.rendering.frames, again.rendering.frames)
    assert [q.text for q in first.questions] == [q.text for q in again.questions]
    for other in (make_scene(split, 2, 5), make_scene(split, 1, 6)):
        assert not np.array_equal(first.rendering.frames, other.rendering.frames)


def test_splits_never_meet():
    frames = [make_scene(split, 0, 0).rendering.frames for split in SPLITS]
    for i, one in enumerate(frames):
        assert all(not np.array_equal(one, other) for other in frames[i + 1 :])


def test_frames_have_the_promised_shape():
    frames = SCENES[0].rendering.frames
    size = (world.CLIP_FRAMES, world.FRAME_SIZE, world.FRAME_SIZE, 3)
    assert frames.shape == size and frames.dtype == np.uint8


def test_objects_and_distractors_stand_on_at_least_half_of_the_tokens():
    share = np.mean([len(object_tokens(scene)) for scene in SCENES]) / world.CLIP_TOKENS
    assert share >= 0.5


@pytest.mark.parametrize("scene", SCENES, ids=lambda s: f"{s.split}-{s.index}")
def test_a_pair_of_colour_and_shape_names_one_object(scene):
    names = [(item.colour, item.shape) for item in scene.items]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("scene", SCENES, ids=lambda s: f"{s.split}-{s.index}")
def test_brief_objects_never_cover_each_other(scene):
    brief = [item for item in scene.items if item.brief]
    for i, one in enumerate(brief):
        for other in brief[i + 1 :]:
            for frame in range(max(one.start, other.start), min(one.stop, other.stop)):
                apart = np.abs(one.centre[frame - one.start] - other.centre[frame - other.start])
                assert apart.max() > one.radius + other.radius


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("count", [1, 28, 57, 144, 576])
def test_choices_keep_the_exact_budget(choice, count):
    scene = SCENES[0]
    keep = CHOICES[choice](scene, scene.questions[0], count, np.random.default_rng(0))
    assert len(keep) == count and (np.diff(keep) > 0).all()
    assert keep.min() >= 0 and keep.max() < world.CLIP_TOKENS


def test_the_oracle_keeps_the_evidence_and_the_blind_oracle_objects_only():
    scene = SCENES[0]
    objects = set(object_tokens(scene).tolist())
    for question in scene.questions[:20]:
        if not question.question_dependent:
            continue
        rng = np.random.default_rng(0)
        keep = CHOICES["oracle: asked object"](scene, question, 57, rng)
        assert set(question.evidence.tolist()) <= set(keep.tolist())
        assert set(CHOICES["blind oracle: any object"](scene, question, 57, rng)) <= objects


def test_bad_scenes_are_refused():
    with pytest.raises(InvalidInputError, match="expected one of train"):
        make_scene("dev", 0, 0)
    with pytest.raises(InvalidInputError, match="must not be negative"):
        make_scene("test", 0, -1)


def test_a_scene_is_the_same_file_at_every_call(tmp_path):
    scene = make_scene("train", 5, 0)
    files = {scene.write(tmp_path / f"{n}.mp4").read_bytes() for n in range(4)}
    assert len(files) == 1
    decoded = [through_h264(scene.rendering.frames) for _ in range(4)]
    assert all((clip == decoded[0]).all() for clip in decoded)


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_visible_is_known_without_drawing(split):
    scene, drawn = make_scene(split, 4, 1), make_scene(split, 4, 1)
    pixels = drawn.rendering.visible
    assert np.array_equal(scene.visible, pixels) and scene.visible.dtype == pixels.dtype
    assert "rendering" not in scene.__dict__ and drawn.visible is pixels
