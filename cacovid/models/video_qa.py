"""`VideoQA`: a question asked of a video, answered from a share of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cacovid.devices import checked_device, checked_dtype
from cacovid.errors import InvalidInputError
from cacovid.methods import Method
from cacovid.methods.beside import BESIDE, policies_beside
from cacovid.models.conversation import checked_share
from cacovid.models.defaults import ReadingDefaults, model_location, reading_defaults
from cacovid.models.generation import generate_timed
from cacovid.models.inputs import video_inputs
from cacovid.models.inside import running
from cacovid.models.processing import load_processor
from cacovid.models.prune import prepare_inputs
from cacovid.models.registry import adapter_for, supported_model_types
from cacovid.models.resolve import resolve_method
from cacovid.models.score_memory import ScoreMemory, video_key
from cacovid.models.storage import load_whole, telling_what_fails
from cacovid.models.timing import StageClock
from cacovid.models.tokenizer import refuse_special_tokens
from cacovid.types import Grid, Scores, Selection

if TYPE_CHECKING:
    from cacovid.models.conversation import Conversation, Mode

READ = "read"

#: What chooses the tokens where there is no policy.
DEFAULT_METHOD = "attention"

#: Share of the tokens where nothing says one; the command line has the same.
DEFAULT_RETENTION = 0.1

#: Shown to people in place of an answer without text.
NO_ANSWER = "(the model said nothing)"


@dataclass(frozen=True)
class Answer:
    """An answer and how it came about.

    Args:
        text: What the model said.
        selection: The kept tokens; of a method that prunes inside the language model those that
            its last layer ran on.
        scores: What the method thought of each token; None where it does not score.
        timings: Seconds by stage: `read` (decoding and preparing the frames), `vision`,
            `score+select`, `prefill` (up to the first token), `decode`.
        tokens: `{"video": N, "kept": K}`; of a method inside the language model also
            `"layer_average"`, the tokens that its layers ran on in the mean.
        frames: The frames that the model saw, uint8 `[F, H, W, 3]`.
        timestamps: Seconds of each frame, float64 `[F]`; None for a video given as an array.
        question: The question as it was asked, with its options.
        method: The method's name.
        retention: Share of the tokens that was asked for.
        shared_prefix: In a conversation: leading tokens of the prompt that the prompt before began
            with, so that their keys and values are the same.
    """

    text: str
    selection: Selection
    scores: Scores | None
    timings: dict[str, float]
    tokens: dict[str, int]
    frames: np.ndarray
    timestamps: np.ndarray | None
    question: str
    method: str
    retention: float
    shared_prefix: int = 0

    def __repr__(self) -> str:
        timings = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in self.timings.items())
        return (
            f"Answer(text={self.text!r}, tokens={self.tokens}, method={self.method!r}, "
            f"retention={self.retention:g}, seconds: {timings})"
        )

    @property
    def grid(self) -> Grid:
        """The video's `(t, h, w)` after the model's pooling."""
        return self.selection.grid

    def overlay(self, path: str | PathLike[str]) -> Path:
        """Draws the frames with scores and kept tokens: `.png` (all frames) or `.mp4`.

        Question, answer, method and share of the tokens stand above them; of a method inside the
        language model also the average over its layers, as the last one's tokens are drawn.

        Raises:
            InvalidInputError: for another ending, or a place where no file can be written.
        """
        from cacovid.viz.overlay import write_overlay

        # The picture shows, and counts, what is kept in the last layer.
        average, video = self.tokens.get("layer_average"), self.tokens["video"]
        inside = "" if average is None else (
            f": {average:,} of {video:,} tokens ({100 * average / video:.1f}%) averaged over the "
            f"layers, {self.tokens['kept']:,} in the last"
        )  # fmt: skip
        caption = (
            self.question,
            # A missing second line would put the third in the answer's place.
            self.text or NO_ANSWER,
            f"method {self.method}, retention {self.retention:g}{inside}",
        )
        return write_overlay(
            path, self.frames, self.grid, self.scores, self.selection,
            timestamps=self.timestamps, caption=caption,
        )  # fmt: skip


class VideoQA:
    """A model, its processor and what chooses the tokens.

    Scores of a question-blind policy (`SurprisePolicy`) are kept for further questions on a video.
    Threads may share one object and ask at the same time.

    Args:
        model: A model that has an adapter.
        processor: Its processor, or a `VideoProcessor`.
        policy: What chooses the tokens unless a question says otherwise: a policy, a method, a
            method's name, a policy's directory or Hub id. Default: `"attention"`.
        reading: How many frames to show.

    Raises:
        UnsupportedModelError: if no adapter serves the model.
        InvalidInputError: for a processor without a tokenizer, or what chooses no tokens.
        WrongBaseModelError: if the policy is for another base model.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        policy: Any = None,
        reading: ReadingDefaults | None = None,
    ) -> None:
        adapter_for(model)
        if getattr(processor, "tokenizer", None) is None:
            raise InvalidInputError(
                f"processor is {processor!r:.80}, which has no tokenizer; expected the model's "
                f"processor (AutoProcessor, or cacovid.models.VideoProcessor)"
            )
        self.model: Any = model
        self.processor = processor
        self.method = resolve_method(DEFAULT_METHOD if policy is None else policy, model)
        self.reading = reading or ReadingDefaults()
        self._named: dict[str, Method] = {}
        self._memory = ScoreMemory()

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str],
        policy: Any = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> VideoQA:
        """Loads a model with its processor, and the policy beside it if there is one.

        Args:
            name: `"tiny"` (embedded, no download), a directory, or a Hub id.
            policy: As in the constructor; default: the directory's `policy` folder, if it has one.
            device: Where to run; default: CUDA where there is one.
            dtype: The weights' dtype, or its name; `"auto"`: as they are stored. Default: float32
                on a CPU, bfloat16 elsewhere.

        Raises:
            UnsupportedModelError: for a kind of model without adapter, before weights are loaded;
                for a model whose weights the installed transformers does not all find.
            InvalidInputError: if the embedded model is missing, a directory or Hub id holds no
                model that can be loaded, the device is not there, or the dtype is no floating
                point.
        """
        from transformers import AutoConfig

        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        device = checked_device(device)
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        dtype = checked_dtype(dtype)
        location = model_location(name)
        with telling_what_fails(name):
            _check_type(location, AutoConfig.from_pretrained(location))
            model = load_whole(location, dtype).to(device).eval()
            processor = load_processor(location)
        if policy is None and BESIDE in policies_beside(Path(location)):
            policy = BESIDE
        return cls(model, processor, policy, reading_defaults(location))

    def ask(
        self,
        video: str | PathLike[str] | np.ndarray | Tensor,
        question: str,
        retention: float | None = None,
        *,
        method: Any = None,
        options: Sequence[str] | None = None,
        max_new_tokens: int = 64,
        seed: int = 0,
        on_stage: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answers a question from a share of the video's tokens; greedy, hence deterministic.

        Args:
            video: A file, or uint8 frames `[F, H, W, 3]` (of more frames than the model is shown,
                evenly spaced ones are taken).
            question: The question.
            retention: Share of the video tokens to keep, in (0, 1]; None: the policy's own
                (`cacovid calibrate`), else 0.1.
            method: What chooses the tokens, for this question only; as `policy` above. A name is
                looked up once.
            options: Options of a multiple choice, 2 to 26 different texts, written below the
                question as A., B., ...
            max_new_tokens: The longest answer, in tokens.
            seed: Seed of the methods that draw.
            on_stage: Called with a stage's name when it begins.

        Raises:
            VideoReadError: if the file cannot be read.
            InvalidInputError: for an empty question or one that holds a special token of the
                model's tokenizer (`<|im_end|>`, which would end the turn), a retention outside
                (0, 1], options that nobody can choose among, frames that are no uint8 RGB.
        """
        chooser = self._chooser(method)
        retention = self._retention(retention, method)
        asked = with_options(question, options)
        refuse_special_tokens(asked, self.processor.tokenizer)
        clock = StageClock(self.model.device, on_stage)
        with clock(READ):
            frames, timestamps, told = self._frames(video)
            inputs = video_inputs(self.model, self.processor, frames, asked, told=told)
            chooser = self._memory.remembering(chooser, video_key(video, frames))
        pruned = prepare_inputs(
            self.model, inputs, chooser, retention, seed=seed, question=asked,
            tokenizer=self.processor.tokenizer, on_stage=on_stage,
        )  # fmt: skip
        for stage, seconds in pruned.timings.items():
            clock.add(stage, seconds)
        with running(self.model, pruned.hook):
            text = generate_timed(
                self.model, self.processor.tokenizer, pruned.inputs, clock, max_new_tokens
            )
        return Answer(
            text=text, selection=pruned.kept, scores=pruned.scores, timings=clock.seconds,
            tokens=pruned.tokens, frames=frames, timestamps=timestamps, question=asked,
            method=pruned.method, retention=retention,
        )  # fmt: skip

    def calibrated_retention(self, method: Any = None) -> float | None:
        """The share of tokens that is stored with a policy; None for what has none.

        Args:
            method: As in `ask`.
        """
        config = getattr(getattr(self._chooser(method), "policy", None), "config", None)
        return getattr(config, "retention", None)

    def _chooser(self, method: Any) -> Method:
        if method is None:
            return self.method
        if not isinstance(method, str):
            return resolve_method(method, self.model)
        if method not in self._named:
            self._named[method] = resolve_method(method, self.model)
        return self._named[method]

    def _retention(self, retention: float | None, method: Any) -> float:
        if retention is None:
            retention = self.calibrated_retention(method) or DEFAULT_RETENTION
        return checked_share(retention)

    def conversation(
        self,
        video: str | PathLike[str] | np.ndarray | Tensor,
        retention: float | None = None,
        *,
        method: Any = None,
        mode: Mode = "fresh",
        max_retention: float | None = None,
        history: bool = False,
    ) -> Conversation:
        """Several questions on one video: the vision tower runs for the first of them only.

        Args:
            video: As in `ask`; it is read now.
            retention: Share of the video tokens that each question selects; as in `ask`.
            method: What chooses the tokens; as `policy` above.
            mode: `"fresh"`: each question's tokens alone. `"sticky"`: also those of the questions
                before it, the latest first, within `max_retention`.
            max_retention: With `"sticky"`: share of the video tokens that are kept at most;
                default: twice the retention.
            history: Whether earlier questions and answers stand in the prompt.

        Raises:
            VideoReadError: if the file cannot be read.
            InvalidInputError: for an unknown mode, a share that cannot be, frames that are no
                uint8 RGB, or `"sticky"` with a method inside the language model.
        """
        from cacovid.models.conversation import Conversation

        chooser, share = self._chooser(method), self._retention(retention, method)
        frames, timestamps, told = self._frames(video)
        chooser = self._memory.remembering(chooser, video_key(video, frames))
        return Conversation(
            self, frames, timestamps, chooser, retention=share, mode=mode,
            max_retention=max_retention, history=history, told=told,
        )  # fmt: skip

    def _frames(self, video: Any) -> tuple[np.ndarray, np.ndarray | None, Any]:
        """Frames, their seconds, and what a processor is told of the file."""
        if isinstance(video, Tensor):
            video = video.cpu().numpy()
        if isinstance(video, np.ndarray):
            if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8 or not video.size:
                raise InvalidInputError(
                    f"the video is an array {video.shape} of {video.dtype}; expected uint8 frames "
                    f"[F, H, W, 3], at least one and none of them empty"
                )
            count = min(len(video), self.reading.max_frames)
            shown = np.linspace(0, len(video) - 1, count).round().astype(np.int64)
            return video[shown], None, None
        if not isinstance(video, (str, PathLike)):
            many = isinstance(video, (list, tuple))
            raise InvalidInputError(
                f"the video is of type {type(video).__name__}; expected the path of a file, or "
                f"uint8 frames [F, H, W, 3]" + (": np.stack(frames)" if many else "")
            )
        from cacovid.video import FrameSampling, read_frames

        sampling = FrameSampling(max_frames=self.reading.max_frames, fps=self.reading.fps)
        read = read_frames(video, sampling)
        return read.frames, read.timestamps, read.hf()


def with_options(question: str, options: Sequence[str] | None) -> str:
    """A question with its options below it as A., B., ...

    Args:
        question: The question.
        options: From 2 to 26 different texts; None or none at all: an open question.

    Raises:
        InvalidInputError: for an empty question or what is no text, or options that nobody can
            choose among.
    """
    if not isinstance(question, str):
        raise InvalidInputError(f"the question is {question!r}; expected a text")
    question = question.strip()
    if not question:
        raise InvalidInputError("the question is empty; ask something")
    if options is None:
        return question
    expected = "expected a list of 2 to 26 different texts, none of them empty"
    if isinstance(options, str):
        raise InvalidInputError(f"options is the text {options!r}; {expected}")
    if len(options) == 0:
        return question
    if not all(isinstance(option, str) for option in options):
        raise InvalidInputError(f"options is {options!r}; {expected}")
    texts = [option.strip() for option in options]
    if not 2 <= len(texts) <= 26:
        raise InvalidInputError(f"{len(texts)} options were given; {expected}")
    if not all(texts) or len(set(texts)) < len(texts):
        raise InvalidInputError(f"options is {list(options)!r}; {expected}")
    listed = (f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))
    return "\n".join((question, *listed))


def _check_type(location: str, config: Any) -> None:
    from cacovid.errors import UnsupportedModelError

    if config.model_type not in supported_model_types():
        raise UnsupportedModelError(
            f"{location!r} is of model type {config.model_type!r}, which has no adapter; "
            f"supported: {', '.join(supported_model_types())}"
        )
