"""lmms-eval: the model `cacovid`, found by lmms-eval through the entry point `lmms_eval.models`.

    lmms-eval --model cacovid --model_args pretrained=DIR,policy=DIR,retention=0.1 --tasks videomme

Nothing of lmms-eval is imported until it asks for the model. The model is a chat model: it gets the
task's own messages, with one video each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from cacovid.errors import InvalidInputError, MissingDependencyError
from cacovid.models.defaults import ReadingDefaults
from cacovid.models.inputs import video_inputs
from cacovid.models.inside import running
from cacovid.models.prune import prepare_inputs
from cacovid.models.video_qa import VideoQA

#: The model's name for `--model`.
NAME = "cacovid"

#: Settings of `generate` that tasks give, and what becomes of those that they leave out.
_GENERATION = {"max_new_tokens": 1024, "temperature": 0.0, "top_p": None, "num_beams": 1}

#: What else tasks give, which says nothing about how an answer is generated.
_IGNORED = frozenset({"until", "do_sample", "image_aspect_ratio", "max_gen_toks", "modalities"})


def manifest() -> Any:
    """What the entry point gives to lmms-eval: an `lmms_eval.models.registry_v2.ModelManifest`.

    Raises:
        MissingDependencyError: without lmms-eval.
    """
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ImportError as error:
        raise MissingDependencyError(
            "this needs lmms-eval from 0.7 on; install it with: pip install lmms-eval"
        ) from error
    return ModelManifest(model_id=NAME, chat_class_path=f"{__name__}.CacovidChat")


def __getattr__(name: str) -> Any:
    if name == "CacovidChat":
        return _chat_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _chat_class() -> type:
    from lmms_eval.api.model import lmms

    return type("CacovidChat", (PrunedChat, lmms), {"__doc__": PrunedChat.__doc__})


class PrunedChat:
    """A video LLM that answers from a share of the video tokens, as lmms-eval asks it.

    Args:
        pretrained: Directory or Hub id of the model, or `"tiny"` (embedded).
        policy: Directory or Hub id of the policy that chooses the tokens.
        method: A method's name in its place; default: the policy beside the model, else
            `"attention"`.
        retention: Share of the tokens to keep; default: the policy's own (`cacovid calibrate`).
            1: everything is kept.
        max_frames_num: Frames of a video; default: as the model's directory says, else 32.
        fps: Frames a second at most, with `rule=train`.
        rule: `"eval"`: always so many frames, as the published evaluations; `"train"`: no more than
            `fps` a second.
        seed: Of methods that draw.
        device: Where the model runs; default: a GPU if there is one, with several processes the
            GPU of this process's number.
        dtype: Such as `bfloat16`; default: bfloat16 on a GPU, float32 on a CPU.
        batch_size: 1; prompts are answered one by one.
        device_map: As `device`; lmms-eval gives it on some command lines.
        system_prompt: Put before every conversation that has none.

    Raises:
        InvalidInputError: for settings that cannot be, or are not known.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "tiny",
        policy: str | None = None,
        method: str | None = None,
        retention: float | str | None = None,
        max_frames_num: int | str | None = None,
        fps: float | str | None = None,
        rule: str = "eval",
        seed: int | str = 0,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        device_map: str | None = None,
        system_prompt: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if others:
            raise InvalidInputError(
                f"model_args holds {', '.join(sorted(others))}, which the model {NAME!r} does not "
                f"know; expected pretrained, policy, method, retention, max_frames_num, fps, rule, "
                f"seed, device, dtype"
            )
        if policy is not None and method is not None:
            raise InvalidInputError("policy and method both choose the tokens; give one")
        if str(batch_size) != "1":
            raise InvalidInputError(
                f"batch_size is {batch_size}; prompts are answered one by one, leave it at 1"
            )
        from accelerate import Accelerator

        from cacovid.video import FrameSampling

        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        if self._world_size > 1 and device in (None, "cuda"):
            device = str(self.accelerator.device)
        qa = VideoQA.from_pretrained(pretrained, policy or method, device or device_map, dtype)
        reading = ReadingDefaults(
            int(max_frames_num or qa.reading.max_frames), float(fps or qa.reading.fps)
        )
        share = retention if retention is not None else qa.calibrated_retention()
        if share is None:
            raise InvalidInputError(
                "no retention is given, and the policy has none of its own; give e.g. "
                "retention=0.1, or retention=1 for the uncompressed model"
            )
        self.qa = qa
        self.method = qa.method
        self.retention = float(share)
        self.sampling = FrameSampling(reading.max_frames, reading.fps, rule)
        self.seed = int(seed)
        self.system_prompt = system_prompt
        self.kept_tokens = 0

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.qa.model.config

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.qa.processor.tokenizer

    @property
    def model(self) -> Any:
        """The Hugging Face model."""
        return self.qa.model

    @property
    def device(self) -> Any:
        """Where the model runs."""
        return self.qa.model.device

    @property
    def batch_size(self) -> int:
        """1."""
        return 1

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers of `generate_until` requests, in their order.

        Raises:
            VideoReadError: if a video cannot be read; nothing is answered without its video.
            InvalidInputError: for messages without exactly one video, or with anything else that
                this model does not take.
        """
        from tqdm import tqdm

        answers = []
        for request in tqdm(requests, desc="Answering", disable=self._rank != 0):
            _, messages_of, settings, number, task, split = request.args
            messages = messages_of(self.task_dict[task][split][number])  # type: ignore[attr-defined]
            answer = self._answer(messages, dict(settings), f"{task} {number}")
            answers.append(answer)
            self.cache_hook.add_partial(  # type: ignore[attr-defined]
                "generate_until", (str(messages), settings), answer
            )
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused: tasks that compare likelihoods are not served.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"the model {NAME!r} generates answers; choose a generate_until task"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: tasks of several rounds are not served.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"the model {NAME!r} answers one round; choose another task")

    def _answer(self, messages: Sequence[Any], settings: dict[str, Any], where: str) -> str:
        conversation, video, question = _read_messages(messages, where)
        if self.system_prompt and conversation[0]["role"] != "system":
            text = {"type": "text", "text": self.system_prompt}
            conversation.insert(0, {"role": "system", "content": [text]})
        processor, model = self.qa.processor, self.qa.model
        prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
        read = self._read(video)
        inputs = video_inputs(model, processor, read.frames, question, prompt, read.hf())
        pruned = prepare_inputs(
            model, inputs, self.method, self.retention, seed=self.seed, question=question,
            tokenizer=processor.tokenizer,
        )  # fmt: skip
        self.kept_tokens += pruned.tokens["kept"]
        until = settings.get("until") or []
        with running(model, pruned.hook):
            out = model.generate(**pruned.inputs, **_generation(settings, where))
        new = out[0, pruned.inputs["input_ids"].shape[1] :]
        text = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        for end in [until] if isinstance(until, str) else until:
            text = text.split(end)[0] if end else text
        return text

    def _read(self, video: Any) -> Any:
        from cacovid.video import read_frames

        return read_frames(str(video), self.sampling)


def _read_messages(messages: Sequence[Any], where: str) -> tuple[list[dict[str, Any]], Any, str]:
    """The conversation for a chat template, its video, and the last user turn's text.

    Raises:
        InvalidInputError: for anything but texts and exactly one whole video.
    """
    conversation, videos = [], []
    question = ""
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        parts: list[dict[str, Any]] = []
        for part in content:
            if part["type"] == "text":
                parts.append({"type": "text", "text": part["text"]})
            elif part["type"] == "video" and not (part.get("start_time") or part.get("end_time")):
                videos.append(part["url"])
                parts.append({"type": "video"})
            else:
                what = "a stretch of a video" if part["type"] == "video" else f"a {part['type']}"
                raise InvalidInputError(
                    f"{where}: the messages hold {what}; the model {NAME!r} takes text and one "
                    f"whole video"
                )
        conversation.append({"role": message["role"], "content": parts})
        if message["role"] == "user":
            question = "\n".join(p["text"] for p in parts if p["type"] == "text").strip()
    if len(videos) != 1:
        raise InvalidInputError(
            f"{where}: the messages hold {len(videos)} videos; the model {NAME!r} takes one"
        )
    return conversation, videos[0], question


def _generation(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Arguments of `generate`.

    Raises:
        InvalidInputError: for a setting that is not known.
    """
    unknown = sorted(set(settings) - set(_GENERATION) - _IGNORED)
    if unknown:
        raise InvalidInputError(
            f"{where}: generation_kwargs holds {', '.join(unknown)}; the model {NAME!r} knows "
            f"{', '.join(_GENERATION)} and until"
        )
    out = {name: settings.get(name, default) for name, default in _GENERATION.items()}
    out["do_sample"] = bool(out["temperature"])
    if not out["do_sample"]:
        del out["temperature"], out["top_p"]
    return out
