"""Training samples: a question on a video with its right answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cacovid.errors import InvalidInputError
from cacovid.train.choices import option_letters
from cacovid.video.sampling import FrameSampling, sample_indices

if TYPE_CHECKING:
    from cacovid.synthetic import PseudoVideo, Scene

#: What a model is asked of pseudo-videos, whose captions are the answer.
DESCRIBE = "Describe the video."


@dataclass(frozen=True)
class SceneReference:
    """A clip of the embedded task: made when it is needed, from three numbers.

    Args:
        split: `"train"`, `"validation"`, `"test"` or `"shifted"`.
        seed: Of the set.
        index: Of the scene.
        stills: 0: the moving clip. More: a static one of so many held stills.
    """

    split: str
    seed: int
    index: int
    stills: int = 0

    @property
    def key(self) -> str:
        """The same for references to the same clip."""
        kind = f"stills-{self.stills}/" if self.stills else ""
        return f"{kind}{self.split}/{self.seed}/{self.index}"

    def make(self) -> Scene:
        """Makes the scene, or gives the one that was made lately: it is not to be changed."""
        return _made(self)


@lru_cache(maxsize=4)  # a scene holds its drawing, for which questions on it come again
def _made(reference: SceneReference) -> Scene:
    from cacovid.synthetic import make_scene, make_stills

    split, seed, index = reference.split, reference.seed, reference.index
    if reference.stills:
        return make_stills(split, seed, index, reference.stills)
    return make_scene(split, seed, index)


@dataclass(frozen=True)
class TrainingSample:
    """One question on one video.

    Args:
        id: Unique in its data.
        problem: The question.
        solution: The right answer: a bare capital letter for multiple choice.
        problem_type: One of `cacovid.train.marking.PROBLEM_TYPES`.
        video: A file.
        options: Options of a multiple choice, each with its letter.
        scene: A clip of the embedded task, in place of a file.
        pseudo: Held images, in place of a file.
        worded: Whether `problem` is put to the model as it stands.
        kind: A finer type, for tables.
        evidence: Of the embedded task: the tokens that show what is asked about.

    Raises:
        InvalidInputError: for a multiple choice without 2 to 26 options, or whose solution is not
            the letter of one.
    """

    id: str
    problem: str
    solution: str
    problem_type: str
    video: Path | None = None
    options: tuple[str, ...] = ()
    scene: SceneReference | None = None
    worded: bool = False
    kind: str = ""
    evidence: tuple[int, ...] = ()
    pseudo: PseudoVideo | None = None

    def __post_init__(self) -> None:
        if self.problem_type != "multiple choice":
            return
        try:
            letters = option_letters(len(self.options))
        except InvalidInputError as error:
            raise InvalidInputError(f"sample {self.id!r}: {error}") from error
        if self.solution not in letters:
            raise InvalidInputError(
                f"sample {self.id!r}: the solution is {self.solution!r}; expected a letter from "
                f"{letters[0]} to {letters[-1]} (cacovid.train.choices.solution_letter reads other "
                f"forms)"
            )

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the options of a multiple choice."""
        return option_letters(len(self.options))

    @property
    def video_key(self) -> str:
        """The same for samples on the same video."""
        if self.scene is not None:
            return self.scene.key
        return str(self.video) if self.pseudo is None else self.pseudo.key


@dataclass(frozen=True)
class Samples(Sequence[TrainingSample]):
    """Samples, and what was left out with the reason.

    Args:
        kept: The samples.
        skipped: `(row, reason)` of everything that could not be used.
        renamed: `(row, new id)` of samples whose id another one has.
    """

    kept: tuple[TrainingSample, ...]
    skipped: tuple[tuple[str, str], ...] = field(default=())
    renamed: tuple[tuple[str, str], ...] = field(default=())

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: Any) -> Any:
        return self.kept[index]

    def __iter__(self) -> Iterator[TrainingSample]:
        return iter(self.kept)

    def listing(self) -> dict[str, Any]:
        """What was left out and renamed, as JSON: `{"left_out": {row: reason}, "renamed": …}`."""
        return {"left_out": dict(self.skipped), "renamed": dict(self.renamed)}

    def order(self, seed: int, epoch: int) -> list[int]:
        """A permutation of the samples, the same for the same seed and epoch."""
        return np.random.default_rng([seed, 17, epoch]).permutation(len(self.kept)).tolist()

    def only(self, ids: Sequence[str]) -> Samples:
        """The samples of a kept list, in the data's order.

        Raises:
            InvalidInputError: if the list names a sample that is not there.
        """
        wanted = set(ids)
        missing = sorted(wanted - {sample.id for sample in self.kept})
        if missing:
            raise InvalidInputError(
                f"the kept list names {len(missing)} samples that the data does not hold, e.g. "
                f"{missing[0]!r}; filter this data again"
            )
        return Samples(tuple(s for s in self.kept if s.id in wanted), self.skipped, self.renamed)


def apart(samples: Samples, held_out: Samples) -> Samples:
    """The samples whose videos no held-out question is about; the others are in `skipped`.

    Args:
        samples: To learn from.
        held_out: To be judged by.

    Raises:
        InvalidInputError: if none is left.
    """
    videos = {_same_video(sample) for sample in held_out}
    shared = {sample.id for sample in samples if _same_video(sample) in videos}
    if not shared:
        return samples
    kept = tuple(sample for sample in samples if sample.id not in shared)
    if not kept:
        raise InvalidInputError(
            f"all {len(samples)} samples are on videos of held-out questions; give the evaluation "
            f"a file with other videos, fewer questions, or none (questions: 0)"
        )
    reason = "its video is one of the held-out questions"
    skipped = tuple((f"sample {s.id!r}", reason) for s in samples if s.id in shared)
    return replace(samples, kept=kept, skipped=samples.skipped + skipped)


def _same_video(sample: TrainingSample) -> str:
    return sample.video_key if sample.video is None else str(sample.video.resolve())


def embedded_samples(
    split: str, seed: int, scenes: int, per_scene: int = 4, first: int = 0, stills: int = 0
) -> Samples:
    """Questions of the embedded task; no video is made until it is needed.

    Args:
        split: `"train"`, `"validation"`, `"test"` or `"shifted"`.
        seed: Of the set.
        scenes: How many clips.
        per_scene: Questions on each, types in turn, answers balanced.
        first: Index of the first clip.
        stills: 0: moving clips. More: static ones of so many held stills.
    """
    from cacovid.synthetic import sample_questions, still_questions

    kept = []
    ask = still_questions if stills else sample_questions
    for index in range(first, first + scenes):
        reference = SceneReference(split, seed, index, stills)
        rng = np.random.default_rng([seed, 3, index])
        for number, q in enumerate(ask(reference.make(), per_scene, rng)):
            kept.append(
                TrainingSample(
                    id=f"{reference.key}/{number}",
                    problem=q.text,
                    solution=q.answer,
                    problem_type="multiple choice" if q.options else "exact",
                    options=q.options,
                    scene=reference,
                    worded=True,
                    kind=q.type,
                    evidence=tuple(q.evidence.tolist()),
                )
            )
    return Samples(tuple(kept))


def pseudo_samples(videos: Sequence[PseudoVideo]) -> Samples:
    """Pseudo-videos to be described, their joined captions being the answer.

    Args:
        videos: As `cacovid.synthetic.make_pseudo_videos` makes them.
    """
    return Samples(
        tuple(
            TrainingSample(
                id=f"pseudo/{number}",
                problem=DESCRIBE,
                solution=video.caption,
                problem_type="free-form",
                kind="caption",
                pseudo=video,
            )
            for number, video in enumerate(videos)
        )
    )


def read_sample_frames(
    sample: TrainingSample, max_frames: int = 32, fps: float = 1.0
) -> np.ndarray:
    """The frames of `read_sample`, uint8 `[F, H, W, 3]`."""
    return read_sample(sample, max_frames, fps)[0]


def read_sample(
    sample: TrainingSample, max_frames: int = 32, fps: float = 1.0
) -> tuple[np.ndarray, Any]:
    """A sample's frames, and what processors are told of its file.

    Args:
        sample: The sample.
        max_frames: At most so many frames.
        fps: At most so many a second.

    Returns:
        Frames, uint8 `[F, H, W, 3]`; scenes pass through H.264 as files do, and are read at their
        own rate. `VideoFrames.hf()` of a file, else None.

    Raises:
        VideoReadError: if the file cannot be read.
        InvalidInputError: if the sample has neither video nor scene nor images.
    """
    if sample.scene is not None:
        from cacovid.synthetic import world
        from cacovid.synthetic.tiny.data import through_h264

        frames = through_h264(sample.scene.make().rendering.frames)
        sampling = FrameSampling(max_frames, fps=world.CLIP_FPS)
        return frames[sample_indices(len(frames), len(frames) / world.CLIP_FPS, sampling)], None
    if sample.pseudo is not None:
        return sample.pseudo.frames(), None
    if sample.video is None:
        raise InvalidInputError(f"sample {sample.id!r} has neither a video nor a scene")
    from cacovid.video import read_frames

    read = read_frames(sample.video, FrameSampling(max_frames=max_frames, fps=fps))
    return read.frames, read.hf()
