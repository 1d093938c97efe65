"""The embedded task: clips of moving objects, and questions whose answer hangs on few tokens.

>>> from cacovid.synthetic import make_scene
>>> scene = make_scene("test", seed=0, index=0)
>>> scene.split, len(scene.items) > 20
('test', True)
"""

from __future__ import annotations

from cacovid.synthetic.pseudo import (
    CaptionedImage,
    PseudoVideo,
    make_pseudo_videos,
    read_captioned_images,
)
from cacovid.synthetic.questions import QUESTION_TYPES, Question, sample_questions
from cacovid.synthetic.scene import SPLITS, Item, Scene, make_scene
from cacovid.synthetic.stills import STILL_TYPES, make_stills, still_questions
from cacovid.synthetic.world import TASK_VERSION

__all__ = [
    "QUESTION_TYPES",
    "SPLITS",
    "STILL_TYPES",
    "TASK_VERSION",
    "CaptionedImage",
    "Item",
    "PseudoVideo",
    "Question",
    "Scene",
    "make_pseudo_videos",
    "make_scene",
    "make_stills",
    "read_captioned_images",
    "sample_questions",
    "still_questions",
]
