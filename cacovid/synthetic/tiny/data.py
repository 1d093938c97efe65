"""Training clips on disk: decoded frames, what each token shows, and what may be asked.

Clips go through H.264 before they are stored, as every clip that the model meets later does.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cacovid.files import written_whole
from cacovid.synthetic import world
from cacovid.synthetic.questions import Fact, offered_facts
from cacovid.synthetic.scene import Scene, make_scene

#: Facts kept of each type: pairs are many and alike.
_MAX_FACTS = 40
_SHARD = 100


@dataclass
class Clip:
    """One stored clip.

    Args:
        owner: `[576]` int16: the item that a token shows most of, -1 for none.
        items: `[items, 8]` int16: colour, shape, pattern, start, stop, direction (-1: big),
            colour of the item of the same shape that came before (-1: none), brief.
        offset: `[576, 2]` float16: the owner's centre against the token's, in cells.
        evidence: Tokens of each item.
        facts: What may be asked.
    """

    owner: np.ndarray
    items: np.ndarray
    offset: np.ndarray
    evidence: list[np.ndarray]
    facts: list[Fact]


def through_h264(frames: np.ndarray) -> np.ndarray:
    """Encodes and decodes `[F, H, W, 3]` uint8 frames in memory."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=int(world.CLIP_FPS))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # Without mbtree: with it x264's vector code gives another stream at each call.
        stream.options = {"crf": "18", "preset": "veryfast", "mbtree": "0"}
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as container:
        container.streams.video[0].thread_count = 1
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(decoded)


def describe(scene: Scene) -> Clip:
    """What a scene's tokens show, for dense supervision."""
    visible = scene.visible.reshape(len(scene.items), -1)
    owner = visible.argmax(axis=0)
    owner = np.where(visible.max(axis=0) >= world.EVIDENCE_PIXELS, owner, -1).astype(np.int16)
    table = np.array([_row(scene, number) for number in range(len(scene.items))], dtype=np.int16)
    offset = np.zeros((world.CLIP_TOKENS, 2), dtype=np.float16)
    for token in np.flatnonzero(owner >= 0):
        frame, cell = divmod(int(token), world.CELLS**2)
        item = scene.items[owner[token]]
        middle = (np.array([cell % world.CELLS, cell // world.CELLS]) + 0.5) * world.CELL_SIZE
        offset[token] = (item.centre[frame - item.start] - middle) / world.CELL_SIZE
    rng = scene.generator(purpose=3)
    by_type: dict[str, list[Fact]] = {}
    for fact in offered_facts(scene):
        by_type.setdefault(fact.type, []).append(fact)
    facts: list[Fact] = []
    for group in by_type.values():
        picked = rng.permutation(len(group))[:_MAX_FACTS]
        facts.extend(group[i] for i in picked)
    evidence = [scene.evidence(n) for n in range(len(scene.items))]
    return Clip(owner, table, offset, evidence, facts)


def _row(scene: Scene, number: int) -> tuple[int, ...]:
    item = scene.items[number]
    before = [o for o in scene.items if o.shape == item.shape and o.start < item.start]
    previous = max(before, key=lambda other: other.start) if before else None
    return (
        world.COLOUR_NAMES.index(item.colour),
        world.SHAPES.index(item.shape),
        world.PATTERNS.index(item.pattern),
        item.start,
        item.stop,
        world.DIRECTIONS.index(item.direction) if item.direction else -1,
        world.COLOUR_NAMES.index(previous.colour) if previous else -1,
        int(item.brief),
    )


def _make_shard(folder: str, split: str, seed: int, shard: int) -> None:
    path = Path(folder) / f"{split}-{seed}-{shard:04d}"
    if path.with_suffix(".pkl").exists():
        return
    frames, clips = [], []
    for index in range(shard * _SHARD, (shard + 1) * _SHARD):
        scene = make_scene(split, seed, index)
        frames.append(through_h264(scene.rendering.frames))
        clips.append(describe(scene))
    with written_whole(path.with_suffix(".npy")) as part:
        np.save(part, np.stack(frames))
    with written_whole(path.with_suffix(".pkl")) as part:
        part.write_bytes(pickle.dumps(clips))


def make_clips(folder: Path, split: str, count: int, seed: int = 0, workers: int = 2) -> None:
    """Makes the clips that are not there yet, a shard of 100 at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(-(-count // _SHARD))
    with ProcessPoolExecutor(workers) as pool:
        for _ in pool.map(
            _make_shard, *zip(*((str(folder), split, seed, s) for s in shards), strict=True)
        ):
            pass


def load_clips(
    folder: Path, split: str, count: int, seed: int = 0
) -> tuple[list[Clip], list[np.ndarray]]:
    """The stored clips and their frames (memory-mapped, one array per shard of 100)."""
    clips: list[Clip] = []
    frames: list[np.ndarray] = []
    for shard in range(-(-count // _SHARD)):
        path = folder / f"{split}-{seed}-{shard:04d}"
        with open(path.with_suffix(".pkl"), "rb") as file:
            clips.extend(pickle.load(file))
        frames.append(np.load(path.with_suffix(".npy"), mmap_mode="r"))
    return clips, frames


def clip_frames(frames: list[np.ndarray], indices: Iterable[int]) -> np.ndarray:
    """Frames of some clips, `[clips, F, H, W, 3]` uint8."""
    return np.stack([frames[i // _SHARD][i % _SHARD] for i in indices])
