"""Scores that no question has a say in, kept for further questions on the same video."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from cacovid.methods import Method, PolicyMethod, ScoredMethod
from cacovid.types import PerVideo, Prompt, Scores, Selection


class ScoreMemory:
    """Remembers the scores of question-blind policies, video by video.

    Weights that have changed since (training, `load_state_dict`) are scored again. Threads may
    share it; two that ask for the same video at once may both score it.

    Args:
        videos: How many videos' scores are held, the last ones used.
    """

    def __init__(self, videos: int = 16) -> None:
        self.videos = videos
        self._changing = threading.Lock()
        self._known: OrderedDict[Hashable, Scores] = OrderedDict()

    def remembering(self, method: Method, video: Hashable) -> Method:
        """The method, which scores a video that it knows no second time.

        Args:
            method: Any method; only question-blind policies are remembered, others returned as
                they are.
            video: What tells videos apart; see `video_key`.
        """
        if not isinstance(method, PolicyMethod) or method.question_aware:
            return method
        return _Remembering(self, method, video)

    def get(self, key: Hashable) -> Scores | None:
        """The scores, if they are known."""
        with self._changing:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def put(self, key: Hashable, scores: Scores) -> None:
        """Keeps scores; the oldest ones go."""
        with self._changing:
            self._known[key] = scores
            while len(self._known) > self.videos:
                self._known.popitem(last=False)


class _Remembering(ScoredMethod):
    """A method in front of the memory, for one video."""

    question_aware = False

    def __init__(self, memory: ScoreMemory, method: PolicyMethod, video: Hashable) -> None:
        self._memory, self._method, self._video = memory, method, video
        self.name, self.needs = method.name, method.needs

    def scores(self, prompt: Prompt, *, seed: int = 0) -> Scores:
        """The known scores, else the method's."""
        policy = self._method.policy
        parameters = getattr(policy, "parameters", lambda: ())
        # In-place writes raise a tensor's version.
        version = sum(int(p._version) for p in parameters())
        device = str(prompt.embeds.device)
        key = (self._video, policy, version, prompt.grid.sizes, prompt.embeds.dtype, device)
        known = self._memory.get(key)
        if known is None:
            known = self._method.scores(prompt, seed=seed)
            self._memory.put(key, known)
        return known

    def select(self, scores: Scores, prompt: Prompt, retention: PerVideo) -> Selection:
        """The method's selection."""
        return self._method.select(scores, prompt, retention)


def video_key(video: Any, frames: np.ndarray) -> Hashable:
    """What tells a video from others: a file by its path, time and size, an array by its pixels.

    Args:
        video: As `VideoQA.ask` was given it.
        frames: The frames that the model is shown, uint8 `[F, H, W, 3]`.
    """
    if isinstance(video, (str, PathLike)):
        path = Path(video).resolve()
        found = path.stat()
        return str(path), found.st_mtime_ns, found.st_size, frames.shape
    digest = hashlib.blake2b(np.ascontiguousarray(frames).tobytes(), digest_size=16)
    return digest.digest(), frames.shape
