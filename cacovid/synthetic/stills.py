"""Static pseudo-videos of the embedded task: stills of several scenes, each held for some frames.

The first stage of SCORE's curriculum (arXiv 2603.26365; ALGORITHMS 2.3): what a token adds to the
frame before is nothing inside an image and everything at its border.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from cacovid.errors import InvalidInputError
from cacovid.synthetic import world
from cacovid.synthetic.questions import Fact, Question, balanced_facts, offered_facts, word_question
from cacovid.synthetic.scene import Item, Scene, make_scene

#: Types that can be asked where nothing moves.
STILL_TYPES = ("colour", "shape", "pattern", "place", "order", "big_colour")

_PURPOSE = 4  # of a scene's random numbers: which frame is held


def make_stills(split: str, seed: int, index: int, images: int = 4) -> Scene:
    """A clip of held stills, one frame of each of `images` scenes.

    The stills are of the scenes `images * index ...` of the same split and seed. Objects stand
    still, appear and go with their image.

    Args:
        split: As in `make_scene`.
        seed: As in `make_scene`.
        index: Number of the clip.
        images: How many stills; the clip's frames are shared out evenly.

    Raises:
        InvalidInputError: for an unknown split, or more images than frames.

    >>> frames = make_stills("train", 0, 0, images=4).rendering.frames
    >>> bool((frames[0] == frames[3]).all()), bool((frames[3] == frames[4]).all())
    (True, False)
    """
    from cacovid.synthetic.render import Rendering

    if not 1 <= images <= world.CLIP_FRAMES:
        raise InvalidInputError(f"images is {images}; expected 1 to {world.CLIP_FRAMES}")
    items: list[Item] = []
    frames, visible = [], []
    for number in range(images):
        source = make_scene(split, seed, images * index + number)
        held = int(source.generator(_PURPOSE).integers(world.CLIP_FRAMES))
        begin, end = (world.CLIP_FRAMES * k // images for k in (number, number + 1))
        frames.append(np.repeat(source.rendering.frames[held][None], end - begin, axis=0))
        for which, item in enumerate(source.items):
            if not item.start <= held < item.stop:
                continue
            centre = np.repeat(item.centre[held - item.start][None], end - begin, axis=0)
            items.append(replace(item, start=begin, stop=end, centre=centre))
            seen = np.zeros((world.CLIP_FRAMES, world.CELLS**2), dtype=np.int32)
            seen[begin:end] = source.rendering.visible[which, held]
            visible.append(seen)
    cuts = tuple(world.CLIP_FRAMES * k // images for k in range(1, images))
    scene = Scene(split, seed, index, tuple(items), cuts)
    # What the cached property would draw: here it is put together from drawings that are there.
    scene.__dict__["rendering"] = Rendering(np.concatenate(frames), np.stack(visible))
    return scene


def still_questions(scene: Scene, count: int, rng: np.random.Generator) -> list[Question]:
    """At most `count` questions on a clip of `make_stills`.

    Args:
        scene: The clip.
        count: How many, types in turn, answers of a type balanced as far as they go.
        rng: Chooses and words them.
    """
    names = Counter((item.colour, item.shape) for item in scene.items)

    def named(fact: Fact) -> bool:
        # Within a scene a colour and a shape name one object; stills of several may share them.
        return all(names[scene.items[i].colour, scene.items[i].shape] == 1 for i in fact.items)

    offered = [fact for fact in offered_facts(scene) if named(fact)]
    return [
        word_question(
            fact,
            rng,
            np.unique(np.concatenate([scene.evidence(item) for item in fact.items])),
            held_out=scene.held_out_wording,
        )
        for fact in balanced_facts(offered, count, rng, STILL_TYPES)
    ]
