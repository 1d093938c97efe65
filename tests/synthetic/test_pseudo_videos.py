"""Static pseudo-videos: held stills of the embedded task, and any folder of captioned images."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from cacovid.errors import InvalidInputError, VideoReadError
from cacovid.synthetic import (
    STILL_TYPES,
    make_pseudo_videos,
    make_scene,
    make_stills,
    read_captioned_images,
    still_questions,
    world,
)


def test_stills_stand_still_and_are_of_the_scenes():
    scene = make_stills("train", 3, 2, images=3)
    frames, visible = scene.rendering.frames, scene.visible
    assert frames.shape == (16, 144, 144, 3) and scene.cuts == (5, 10)
    moved = [bool((frames[i] != frames[i - 1]).any()) for i in range(1, 16)]
    assert [i for i, m in enumerate(moved, 1) if m] == [5, 10]
    sources = [make_scene("train", 3, 6 + n).rendering.frames for n in range(3)]
    for begin, source in zip((0, 5, 10), sources, strict=True):
        assert any(np.array_equal(frames[begin], frame) for frame in source)
    assert visible.shape == (len(scene.items), 16, world.CELLS**2)
    for number, item in enumerate(scene.items):
        shown = visible[number].sum(axis=1) > 0
        assert not shown[: item.start].any() and not shown[item.stop :].any()
        assert item.start in (0, 5, 10) and bool((item.centre == item.centre[0]).all())
    again = make_stills("train", 3, 2, images=3)
    assert np.array_equal(again.rendering.frames, frames)
    assert not np.array_equal(make_stills("train", 3, 3, images=3).rendering.frames, frames)
    with pytest.raises(InvalidInputError, match="images is 17"):
        make_stills("train", 3, 2, images=17)


def test_questions_on_stills_name_one_object():
    kinds: Counter[str] = Counter()
    for index in range(3):
        scene = make_stills("train", 5, index)
        names = Counter((item.colour, item.shape) for item in scene.items)
        for question in still_questions(scene, 8, np.random.default_rng(index)):
            kinds[question.type] += 1
            for number in question.items:
                item = scene.items[number]
                assert names[item.colour, item.shape] == 1
                seen = np.intersect1d(scene.evidence(number), question.evidence)
                frames = set((seen // world.CELLS**2).tolist())
                assert frames == set(range(item.start, item.stop))
    assert set(kinds) <= set(STILL_TYPES) and len(kinds) >= 4


@pytest.fixture
def folder(tmp_path):
    from PIL import Image

    for number, size in enumerate([(40, 30), (30, 40), (60, 45), (16, 12)]):
        colour = (50 * number, 255 - 50 * number, 90)
        Image.new("RGB", size, colour).save(tmp_path / f"{number}.png")
    return tmp_path


def test_captions_by_name_in_lists_and_beside(folder):
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"picture\n{number}")
    (folder / "9.txt").write_text("an image that is not there")
    found = read_captioned_images(folder)
    assert [(i.path.name, i.caption) for i in found] == [
        (f"{n}.png", f"picture {n}") for n in range(3)
    ]
    for captions in (
        {"3.png": "last", "gone.png": "no"},
        [{"image": "3.png", "caption": "last"}],
        [{"file_name": "3.png", "caption": "last"}],
    ):
        (folder / "captions.json").write_text(json.dumps(captions))
        assert [(i.path.name, i.caption) for i in read_captioned_images(folder)] == [
            ("3.png", "last")
        ]


def test_videos_of_images(folder):
    (folder / "captions.json").write_text(json.dumps({f"{n}.png": f"number {n}" for n in range(4)}))
    images = read_captioned_images(folder)
    videos = make_pseudo_videos(images, 4, images_per_video=2, frames_per_image=3, seed=1)
    used = Counter(i.path.name for v in videos for i in v.images)
    assert used == {f"{n}.png": 2 for n in range(4)}
    for video in videos:
        frames = video.frames()
        width, height = {"0": (40, 30), "1": (30, 40), "2": (60, 45), "3": (16, 12)}[
            video.images[0].path.stem
        ]
        assert frames.shape == (6, height, width, 3) and frames.dtype == np.uint8
        for number, image in enumerate(video.images):
            which = int(image.path.stem)
            colour = frames[3 * number, height // 2, width // 2].tolist()
            assert colour == [50 * which, 255 - 50 * which, 90]
            assert (frames[3 * number] == frames[3 * number + 2]).all()
        assert video.caption == " ".join(f"number {i.path.stem}." for i in video.images)
    assert len({video.key for video in videos}) == 4
    (folder / "0.png").write_bytes(b"no image")
    broken = next(v for v in videos if "0.png" in v.key)
    with pytest.raises(VideoReadError, match=r"0\.png cannot be read"):
        broken.frames()


def test_wrong_folders(folder):
    with pytest.raises(InvalidInputError, match="no folder of images"):
        read_captioned_images(folder / "absent")
    with pytest.raises(InvalidInputError, match="holds no image with a caption"):
        read_captioned_images(folder)
    for text in ("{", '["a"]', '{"0.png": 3}', '"text"'):
        (folder / "captions.json").write_text(text)
        with pytest.raises(InvalidInputError, match=r"captions"):
            read_captioned_images(folder)
    (folder / "captions.json").write_text('{"0.png": "one"}')
    images = read_captioned_images(folder)
    with pytest.raises(InvalidInputError, match=r"1 captioned images; expected at least .* 4"):
        make_pseudo_videos(images, 1)
    with pytest.raises(InvalidInputError, match="count is 0"):
        make_pseudo_videos(images, 0, images_per_video=1)
