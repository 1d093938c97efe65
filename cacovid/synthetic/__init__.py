"""The embedded task: clips of moving objects, and questions whose answer hangs on few tokens.

>>> from cacovid.synthetic import make_scene
>>> scene = make_scene("test", seed=0, index=0)
>>> scene.split, len(scene.items) > 20
('test', True)
"""

from __future__ import annotations

from cacovid.synthetic.questions import QUESTION_TYPES, Question, sample_questions
from cacovid.synthetic.scene import SPLITS, Item, Scene, make_scene
from cacovid.synthetic.world import TASK_VERSION

__all__ = [
    "QUESTION_TYPES",
    "SPLITS",
    "TASK_VERSION",
    "Item",
    "Question",
    "Scene",
    "make_scene",
    "sample_questions",
]
