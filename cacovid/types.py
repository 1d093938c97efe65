"""The named intermediates on the way from an embedded prompt to the kept tokens.

Dimension letters used throughout the project: `B` videos, `F` frames in all, `N` video tokens
in all, `L` question tokens, `S` prompt tokens, `D` hidden size, `P` policy width, `H` heads,
`G` rollouts, `K` kept tokens.

A batch is *packed*: videos stand one after another with offsets, never padded, and every video
has its own grid and its own budget.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from cacovid.errors import InvalidInputError

#: One number for all videos, or one per video.
PerVideo: TypeAlias = float | Sequence[float]

#: Added before every floor of `ratio * count`, so that 29% of 100 is 29 (float64).
FLOOR_EPSILON = 1e-9


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_T = TypeVar("_T")


class _Cached(Generic[_T]):
    """`functools.cached_property` without the lock of Python 3.11, which torch.compile refuses.

    Two threads may compute a value twice; it is the same value.
    """

    def __init__(self, compute: Callable[[Any], _T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> _T:
        if instance is None:  # asked for on the class, by documentation tools
            return self  # type: ignore[return-value]
        value = self._compute(instance)
        instance.__dict__[self._name] = value  # found first from now on
        return value


def floor_budget(ratio: float, count: int) -> int:
    """`floor(ratio * count + 1e-9)` in float64, without the minimum of 1.

    >>> floor_budget(0.29, 100)
    29
    """
    return math.floor(ratio * count + FLOOR_EPSILON)


@dataclass(frozen=True)
class Grid:
    """The `(t, h, w)` of each packed video after the model's own merging, as host integers.

    Offsets are computed on the host and cached per device, so that using a grid never reads back
    from an accelerator.

    Args:
        sizes: One `(t, h, w)` per video, each at least 1; a grid is copied.

    Raises:
        InvalidInputError: if there is no video, or a size is not three positive integers.

    >>> grid = Grid([(2, 3, 3), (1, 2, 2)])
    >>> grid.num_videos, grid.num_frames, grid.num_tokens
    (2, 3, 22)
    >>> grid.tokens_per_frame
    (9, 9, 4)
    """

    sizes: tuple[tuple[int, int, int], ...]
    _device_cache: dict[tuple[str, str], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False, hash=False
    )

    def __init__(self, sizes: Grid | Iterable[Sequence[int]]) -> None:
        if isinstance(sizes, Grid):
            sizes = sizes.sizes
        if not isinstance(sizes, Iterable):
            raise InvalidInputError(
                f"a grid was given {sizes!r}; expected a list of (t, h, w), one for each video"
            )
        checked: list[tuple[int, int, int]] = []
        for index, size in enumerate(sizes):
            values = _whole_numbers(size)
            if len(values) != 3 or min(values) < 1:
                raise InvalidInputError(
                    f"grid of video {index} is {size!r}; expected (t, h, w), integers of at least "
                    f"1; a single video is [(t, h, w)]"
                )
            checked.append((values[0], values[1], values[2]))
        if not checked:
            raise InvalidInputError("a grid needs at least one video; got an empty list")
        object.__setattr__(self, "sizes", tuple(checked))
        object.__setattr__(self, "_device_cache", {})

    @classmethod
    def of(cls, grid: Grid | Iterable[Sequence[int]]) -> Grid:
        """`grid` itself, or a grid made from a list of `(t, h, w)`."""
        return grid if isinstance(grid, Grid) else cls(grid)

    @property
    def num_videos(self) -> int:
        """`B`, the number of packed videos."""
        return len(self.sizes)

    @_Cached
    def frames_per_video(self) -> tuple[int, ...]:
        """`t` of each video."""
        return tuple(t for t, _, _ in self.sizes)

    @_Cached
    def tokens_per_video(self) -> tuple[int, ...]:
        """`t*h*w` of each video."""
        return tuple(t * h * w for t, h, w in self.sizes)

    @_Cached
    def tokens_per_frame(self) -> tuple[int, ...]:
        """`h*w` of each of the `F` frames."""
        return tuple(h * w for t, h, w in self.sizes for _ in range(t))

    @_Cached
    def num_frames(self) -> int:
        """`F`, the number of frames of all videos."""
        return sum(self.frames_per_video)

    @_Cached
    def num_tokens(self) -> int:
        """`N`, the number of tokens of all videos."""
        return sum(self.tokens_per_video)

    @_Cached
    def host_video_offsets(self) -> tuple[int, ...]:
        """Where each video's tokens begin, and `N` at the end: `B + 1` integers."""
        return _prefix_sums(self.tokens_per_video)

    @_Cached
    def host_frame_offsets(self) -> tuple[int, ...]:
        """Where each frame's tokens begin, and `N` at the end: `F + 1` integers."""
        return _prefix_sums(self.tokens_per_frame)

    @_Cached
    def host_video_frame_offsets(self) -> tuple[int, ...]:
        """Where each video's frames begin, and `F` at the end: `B + 1` integers."""
        return _prefix_sums(self.frames_per_video)

    def video_offsets(self, device: torch.device | str = "cpu") -> Tensor:
        """`host_video_offsets` as int64 `[B + 1]` on `device` (cached)."""
        return self._on(device, "video", self.host_video_offsets)

    def frame_offsets(self, device: torch.device | str = "cpu") -> Tensor:
        """`host_frame_offsets` as int64 `[F + 1]` on `device` (cached)."""
        return self._on(device, "frame", self.host_frame_offsets)

    def video_frame_offsets(self, device: torch.device | str = "cpu") -> Tensor:
        """`host_video_frame_offsets` as int64 `[B + 1]` on `device` (cached)."""
        return self._on(device, "video_frame", self.host_video_frame_offsets)

    def video(self, index: int) -> Grid:
        """The grid of one video alone."""
        return Grid([self.sizes[index]])

    def per_video(self, value: PerVideo, name: str) -> tuple[float, ...]:
        """`value` for each video.

        Numbers of numpy and tensors on the CPU are taken at the fewest digits that tell them apart
        in their own dtype: `np.float32(0.29)` is 0.29, as a caller wrote it.

        Args:
            value: One number, or one per video.
            name: For messages.

        Raises:
            InvalidInputError: for what is no number, or a tensor on another device; if a sequence
                has not one entry per video.
        """
        if isinstance(value, (int, float)):
            return (float(value),) * self.num_videos
        given: Any = value
        if not isinstance(given, (list, tuple)):
            given = _on_the_host(given, name)
            if np.ndim(given) == 0:
                return (_number(given, name),) * self.num_videos
        values = tuple(_number(v, name) for v in given)
        if len(values) != self.num_videos:
            raise InvalidInputError(
                f"{name} has {len(values)} values for {self.num_videos} videos; "
                f"give one number, or one per video"
            )
        return values

    def budgets(self, retention: PerVideo) -> tuple[int, ...]:
        """The exact budget of each video: `max(1, floor(r*N + 1e-9))` in float64.

        Args:
            retention: One number, or one per video; each in (0, 1].

        Raises:
            InvalidInputError: if a retention is no number in (0, 1].

        >>> Grid([(1, 10, 10)]).budgets(0.29)
        (29,)
        """
        ratios = self.per_video(retention, "retention")
        for ratio in ratios:
            if not 0.0 < ratio <= 1.0:
                raise InvalidInputError(
                    f"retention is {ratio}; expected a number in (0, 1], e.g. 0.1 to keep a tenth"
                )
        return tuple(
            max(1, floor_budget(ratio, count))
            for ratio, count in zip(ratios, self.tokens_per_video, strict=True)
        )

    def _on(self, device: torch.device | str, name: str, values: tuple[int, ...]) -> Tensor:
        key = (name, str(torch.device(device)))
        cached = self._device_cache.get(key)
        if cached is None:
            cached = torch.tensor(values, dtype=torch.int64).to(device)
            self._device_cache[key] = cached
        return cached


@dataclass(frozen=True)
class Prompt:
    """One embedded prompt, or several packed one after another.

    Args:
        embeds: `[S, D]`, float: the embedded prompt, video features in place.
        position_ids: `[S]` or `[3, S]`, int64: the model's original positions.
        video_index: `[N]`, int64: where the video tokens stand in `embeds`, in the grid's order.
        question_index: `[L]`, int64: where the question's tokens stand (user text and options; no
            template markers, no system text).
        grid: The grids of the packed videos; a list of `(t, h, w)` is made one.
        prompt_offsets: Where each prompt begins in `embeds`, and `S` at the end (host integers,
            ascending from 0); `(0, S)` when omitted.
        question_offsets: Where each video's question begins in `question_index`, and `L` at the
            end (host integers, ascending from 0, `B + 1`); one question for all videos when
            omitted.
        extras: Optional tensors that an adapter fills in when a method asks for them, e.g.
            `"vision_attention"` `[N]` (attention that each token received in the vision tower),
            `"vision_keys"` `[N, D_v]`.

    Raises:
        InvalidInputError: for a tensor of another shape or dtype, offsets that are none, or (on the
            CPU, where nothing has to be waited for) places that `embeds` does not have.
    """

    embeds: Tensor
    position_ids: Tensor
    video_index: Tensor
    question_index: Tensor
    grid: Grid
    prompt_offsets: tuple[int, ...] | None = None
    question_offsets: tuple[int, ...] | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _set_grid(self)
        if self.embeds.dim() != 2:
            raise InvalidInputError(
                f"embeds has shape {tuple(self.embeds.shape)}; expected [S, D] (packed, no batch)"
            )
        if not self.embeds.is_floating_point():
            raise InvalidInputError(
                f"embeds is {self.embeds.dtype}; expected a floating dtype: the embedded tokens, "
                f"not their ids"
            )
        count, shape = self.embeds.shape[0], tuple(self.position_ids.shape)
        if len(shape) not in (1, 2) or shape[-1] != count or (len(shape) == 2 and shape[0] != 3):
            raise InvalidInputError(
                f"position_ids has shape {shape} for {count} tokens; expected [S] or [3, S]"
            )
        for name in ("position_ids", "video_index", "question_index"):
            _check_int64(name, getattr(self, name))
        for name in ("video_index", "question_index"):
            if getattr(self, name).dim() != 1:
                raise InvalidInputError(
                    f"{name} has shape {tuple(getattr(self, name).shape)}; expected one place for "
                    f"each token, [{'N' if name == 'video_index' else 'L'}]"
                )
        if self.video_index.numel() != self.grid.num_tokens:
            raise InvalidInputError(
                f"video_index has {self.video_index.numel()} entries, but the grid "
                f"{self.grid.sizes} has {self.grid.num_tokens} tokens"
            )
        for name in ("video_index", "question_index"):
            self._check_places(name, getattr(self, name))
        self._set_offsets("prompt_offsets", count, None)
        self._set_offsets("question_offsets", self.question_index.shape[0], self.grid.num_videos)

    def __repr__(self) -> str:
        return (
            f"Prompt(embeds={_brief(self.embeds)}, position_ids={_brief(self.position_ids)}, "
            f"video_index={_brief(self.video_index)}, "
            f"question_index={_brief(self.question_index)}, grid={self.grid}, "
            f"extras={sorted(self.extras)})"
        )

    def _check_places(self, name: str, index: Tensor) -> None:
        # On another device this would wait for it, and a compiled graph cannot branch on it; a
        # fake tensor, a subclass, has no values.
        if index.device.type != "cpu" or torch.compiler.is_compiling() or not index.numel():
            return
        if type(index) is not Tensor:
            return
        low, high = (int(end) for end in torch.aminmax(index))
        if low < 0 or high >= self.embeds.shape[0]:
            raise InvalidInputError(
                f"{name} runs from {low} to {high}; expected rows of embeds, from 0 to "
                f"{self.embeds.shape[0] - 1}"
            )

    def _set_offsets(self, name: str, total: int, parts: int | None) -> None:
        """Checks offsets, and makes them a tuple of integers."""
        given = getattr(self, name)
        if given is None:
            return
        offsets = () if isinstance(given, Tensor) else _whole_numbers(given)
        good = len(offsets) >= 2 and offsets[0] == 0 and offsets[-1] == total
        good = good and (parts is None or len(offsets) == parts + 1)
        if not good or list(offsets) != sorted(offsets):
            many = "" if parts is None else f"{parts + 1} of them for {parts} videos, "
            raise InvalidInputError(
                f"{name} is {given!r}; expected host integers, {many}that ascend from 0 to "
                f"{total}, the tokens of {'embeds' if parts is None else 'question_index'}"
            )
        object.__setattr__(self, name, offsets)

    @property
    def video_embeds(self) -> Tensor:
        """`X_vid [N, D]`: the video tokens' rows. Not to be written to: on the CPU, where nothing
        has to be waited for to see it, rows that stand together are a view of `embeds`."""
        index = self.video_index
        # Neither traced nor fake: there is something to see.
        plain = type(index) is Tensor and not torch.compiler.is_compiling()
        if plain and index.device.type == "cpu" and len(index) and _ascending_by_one(index):
            return self.embeds.narrow(0, int(index[0]), len(index))
        return self.embeds.index_select(0, index)

    @property
    def question_embeds(self) -> Tensor:
        """`X_qst [L, D]`: the question tokens' rows, gathered."""
        return self.embeds.index_select(0, self.question_index)


def _ascending_by_one(index: Tensor) -> bool:
    begin = int(index[0])
    end = begin + len(index)
    return int(index[-1]) == end - 1 and torch.equal(index, torch.arange(begin, end))


@dataclass(frozen=True)
class Scores:
    """What a policy says of the tokens.

    Args:
        token: `[N]` float32, higher is kept first; `log pi(keep) = logsigmoid(score)`.
        frame: `[F]` float32, or None where a method has no frame scores.
    """

    token: Tensor
    frame: Tensor | None = None

    def __repr__(self) -> str:
        return f"Scores(token={_brief(self.token)}, frame={_brief(self.frame)})"


@dataclass(frozen=True)
class Selection:
    """Which video tokens are kept.

    Args:
        keep: `[K]` int64 (other integers are made int64), ascending, flat over the packed videos.
        grid: The grids that `keep` refers to; a list of `(t, h, w)` is made one.
        counts: Kept tokens of each video (host integers). Left out, they are counted from `keep`,
            which waits for its device.
        embeds: `[K, D]` where a method merges tokens, else None.

    Raises:
        InvalidInputError: for a `keep` that is no list of integers, such as a mask; for counts that
            are not those of `keep`, or left out for a `keep` that is not ascending or names tokens
            that the grid does not have.

    >>> Selection(torch.tensor([0, 3, 4]), [(1, 2, 2), (1, 1, 3)]).counts
    (2, 1)
    """

    keep: Tensor
    grid: Grid
    counts: tuple[int, ...] = ()
    embeds: Tensor | None = None

    def __post_init__(self) -> None:
        _set_grid(self)
        _set_keep(self)
        if not self.counts:  # a grid has at least one video, and so has its counts
            object.__setattr__(self, "counts", _counted(self.keep, self.grid))
        if sum(self.counts) != self.keep.numel() or len(self.counts) != self.grid.num_videos:
            raise InvalidInputError(
                f"counts {self.counts} do not describe {self.keep.numel()} kept tokens of "
                f"{self.grid.num_videos} videos"
            )

    def __repr__(self) -> str:
        merged = "" if self.embeds is None else f", embeds={_brief(self.embeds)}"
        keep = _brief(self.keep)
        return f"Selection(keep={keep}, grid={self.grid}, counts={self.counts}{merged})"

    def mask(self) -> Tensor:
        """`[N]` bool, True where a token is kept."""
        mask = torch.zeros(self.grid.num_tokens, dtype=torch.bool, device=self.keep.device)
        return mask.index_fill_(0, self.keep, True)

    def per_frame(self) -> Tensor:
        """`[F]` int64: kept tokens of each frame."""
        ends = self.grid.frame_offsets(self.keep.device)[1:]
        frame = torch.searchsorted(ends, self.keep, right=True)
        return torch.bincount(frame, minlength=self.grid.num_frames)


def _prefix_sums(values: Sequence[int]) -> tuple[int, ...]:
    total, sums = 0, [0]
    for value in values:
        total += value
        sums.append(total)
    return tuple(sums)


def _set_grid(value: Prompt | Selection) -> None:
    if not isinstance(value.grid, Grid):
        object.__setattr__(value, "grid", Grid(value.grid))


def _set_keep(selection: Selection) -> None:
    keep = selection.keep
    if keep.dim() != 1 or keep.dtype not in _INTEGERS:
        raise InvalidInputError(
            f"keep is {keep.dtype} of shape {tuple(keep.shape)}; expected [K] int64, the places of "
            f"the kept tokens. Of a mask, take mask.nonzero().flatten()"
        )
    if keep.dtype is not torch.int64:
        object.__setattr__(selection, "keep", keep.long())


def _check_int64(name: str, value: Tensor) -> None:
    if value.dtype is not torch.int64:
        raise InvalidInputError(
            f"{name} is {value.dtype}; expected torch.int64: places, not a mask or values"
        )


def _counted(keep: Tensor, grid: Grid) -> tuple[int, ...]:
    places = keep.cpu().numpy()
    inside = not len(places) or (places[0] >= 0 and places[-1] < grid.num_tokens)
    if not inside or bool(np.any(np.diff(places) <= 0)):
        raise InvalidInputError(
            f"keep does not ascend within the {grid.num_tokens} tokens of the grid {grid.sizes}; "
            f"expected each token once, by its place, in order"
        )
    ends = np.searchsorted(places, grid.host_video_offsets)
    return tuple(int(count) for count in np.diff(ends))


def _whole_numbers(size: Any) -> tuple[int, ...]:
    """The entries as integers; none where one is not whole."""
    try:
        return tuple(v if type(v) is int else int(operator.index(v)) for v in size)
    except TypeError:
        return ()


def _on_the_host(value: Any, name: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    # Nothing waits for a device unasked; bfloat16 does not tell 0.1 from 0.1001.
    if value.device.type != "cpu" or value.dtype is torch.bfloat16:
        raise InvalidInputError(
            f"{name} is a {value.dtype} tensor on {value.device}; expected numbers, or a tensor on "
            f"the CPU that numpy knows. Pass {name}.tolist()"
        )
    return value.detach().numpy()


def _number(value: Any, name: str) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    value = _on_the_host(value, name)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not isinstance(value, (int, float, np.integer, np.floating)):
        raise InvalidInputError(
            f"{name} is {value!r}; expected a number, or one number for each video"
        )
    # The text is the shortest that tells the number apart: 0.29 of float32, not 0.2899999917.
    return float(str(value))


def _brief(value: Tensor | None) -> str:
    """A tensor's dtype and shape, which nothing waits for."""
    if value is None:
        return "None"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
