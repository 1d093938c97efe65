"""Training samples: a question on a video with its right answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from cacovid.errors import InvalidInputError
from cacovid.train.marking import PROBLEM_TYPES, extract_answer


@dataclass(frozen=True)
class SceneReference:
    """A clip of the embedded task: made when it is needed, from three numbers.

    Args:
        split: `"train"`, `"validation"`, `"test"` or `"shifted"`.
        seed: Of the set.
        index: Of the scene.
    """

    split: str
    seed: int
    index: int


@dataclass(frozen=True)
class TrainingSample:
    """One question on one video.

    Args:
        id: Unique in its data.
        problem: The question.
        solution: The right answer: a letter for multiple choice.
        problem_type: One of `cacovid.train.marking.PROBLEM_TYPES`.
        video: A file.
        options: Options of a multiple choice, each with its letter.
        scene: A clip of the embedded task, in place of a file.
        worded: Whether `problem` is put to the model as it stands.
        kind: A finer type, for tables.
        evidence: Of the embedded task: the tokens that show what is asked about.
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

    @property
    def video_key(self) -> str:
        """The same for samples on the same video."""
        if self.scene is not None:
            return f"{self.scene.split}/{self.scene.seed}/{self.scene.index}"
        return str(self.video)


@dataclass(frozen=True)
class Samples(Sequence[TrainingSample]):
    """Samples, and what was left out with the reason.

    Args:
        kept: The samples.
        skipped: `(row, reason)` of everything that could not be used.
    """

    kept: tuple[TrainingSample, ...]
    skipped: tuple[tuple[str, str], ...] = field(default=())

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: Any) -> Any:
        return self.kept[index]

    def __iter__(self) -> Iterator[TrainingSample]:
        return iter(self.kept)

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
        return Samples(tuple(s for s in self.kept if s.id in wanted), self.skipped)


def read_video_r1(
    path: str | PathLike[str],
    video_root: str | PathLike[str] | None = None,
    *,
    max_skipped: float = 0.5,
) -> Samples:
    """Reads questions of the Video-R1 form, JSON or JSON lines.

    Fields of a row: `problem`, `solution` (in `<answer>` tags or bare), `problem_type`,
    `path` or `video` (relative to `video_root`), `options` for multiple choice; `modality_type` or
    `data_type` must be `video` where it is given; `problem_id` or `id` where there is one.

    Args:
        path: The file.
        video_root: Where the videos lie; default: the file's folder.
        max_skipped: Greatest share of rows that may be unusable.

    Returns:
        The samples; rows that cannot be used are in `skipped`.

    Raises:
        InvalidInputError: if the file is not JSON, holds no usable row, or too many unusable ones.
    """
    path = Path(path)
    root = path.parent if video_root is None else Path(video_root)
    rows = _rows(path)
    kept: list[TrainingSample] = []
    skipped: list[tuple[str, str]] = []
    seen: set[str] = set()
    for number, row in enumerate(rows):
        try:
            sample = _sample(row, number, root)
            if sample.id in seen:
                raise _Unusable(f"the id {sample.id!r} stands twice")
        except _Unusable as reason:
            skipped.append((f"row {number}", str(reason)))
            continue
        seen.add(sample.id)
        kept.append(sample)
    if not kept or len(skipped) > max_skipped * len(rows):
        shown = "; ".join(f"{row}: {reason}" for row, reason in skipped[:5])
        raise InvalidInputError(
            f"{path}: {len(skipped)} of {len(rows)} rows cannot be used ({shown}). Mend them, or "
            f"raise max_skipped"
        )
    return Samples(tuple(kept), tuple(skipped))


class _Unusable(Exception):
    pass


def _rows(path: Path) -> list[Any]:
    try:
        text = path.read_text()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    try:
        rows = json.loads(text)
    except json.JSONDecodeError:
        try:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"{path} is neither JSON nor JSON lines: {error}") from error
    if not isinstance(rows, list):
        raise InvalidInputError(f"{path} holds a {type(rows).__name__}; expected a list of rows")
    return rows


def _sample(row: Any, number: int, root: Path) -> TrainingSample:
    if not isinstance(row, Mapping):
        raise _Unusable(f"a {type(row).__name__}, not an object")
    modality = row.get("modality_type", row.get("data_type", "video"))
    if modality != "video":
        raise _Unusable(f"modality_type is {modality!r}, not 'video'")
    for name in ("problem", "solution", "problem_type"):
        if not isinstance(row.get(name), (str, int, float)) or str(row[name]).strip() == "":
            raise _Unusable(f"no {name}")
    if row["problem_type"] not in PROBLEM_TYPES:
        raise _Unusable(f"problem_type {row['problem_type']!r} is not known")
    where = row.get("path", row.get("video"))
    if not isinstance(where, str) or not where:
        raise _Unusable("no path or video")
    video = root / where
    if not video.is_file():
        raise _Unusable(f"there is no video {video}")
    options = tuple(str(option) for option in row.get("options") or ())
    if row["problem_type"] == "multiple choice" and not options:
        raise _Unusable("multiple choice without options")
    return TrainingSample(
        id=str(row.get("problem_id", row.get("id", number))),
        problem=str(row["problem"]),
        solution=extract_answer(str(row["solution"])),
        problem_type=row["problem_type"],
        video=video,
        options=options,
    )


def embedded_samples(
    split: str, seed: int, scenes: int, per_scene: int = 4, first: int = 0
) -> Samples:
    """Questions of the embedded task; no video is made until it is needed.

    Args:
        split: `"train"`, `"validation"`, `"test"` or `"shifted"`.
        seed: Of the set.
        scenes: How many clips.
        per_scene: Questions on each, types in turn, answers balanced.
        first: Index of the first clip.
    """
    from cacovid.synthetic import make_scene, sample_questions

    kept = []
    for index in range(first, first + scenes):
        scene = make_scene(split, seed, index)
        rng = np.random.default_rng([seed, 3, index])
        for number, q in enumerate(sample_questions(scene, per_scene, rng)):
            kept.append(
                TrainingSample(
                    id=f"{split}/{seed}/{index}/{number}",
                    problem=q.text,
                    solution=q.answer,
                    problem_type="multiple choice" if q.options else "exact",
                    options=q.options,
                    scene=SceneReference(split, seed, index),
                    worded=True,
                    kind=q.type,
                    evidence=tuple(q.evidence.tolist()),
                )
            )
    return Samples(tuple(kept))


def read_sample_frames(
    sample: TrainingSample, max_frames: int = 32, fps: float = 1.0
) -> np.ndarray:
    """A sample's frames, uint8 `[F, H, W, 3]`; scenes pass through H.264 as files do.

    Args:
        sample: The sample.
        max_frames: At most so many frames.
        fps: At most so many a second.

    Raises:
        VideoReadError: if the file cannot be read.
        InvalidInputError: if the sample has neither video nor scene.
    """
    if sample.scene is not None:
        from cacovid.synthetic import make_scene
        from cacovid.synthetic.tiny.data import through_h264

        ref = sample.scene
        return through_h264(make_scene(ref.split, ref.seed, ref.index).rendering.frames)
    if sample.video is None:
        raise InvalidInputError(f"sample {sample.id!r} has neither a video nor a scene")
    from cacovid.video import FrameSampling, read_frames

    return read_frames(sample.video, FrameSampling(max_frames=max_frames, fps=fps)).frames
