"""Answers from kept tokens: many questions and selections in batches of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cacovid.methods import LayerHook
from cacovid.models import deepstack
from cacovid.models.base import EmbeddedInputs
from cacovid.models.finite import FiniteLogits, check_answers
from cacovid.models.generation import fixed_settings
from cacovid.models.inside import running
from cacovid.models.registry import adapter_for
from cacovid.models.repack import shorten
from cacovid.train.choices import letter_ids
from cacovid.train.data import TrainingSample
from cacovid.train.decoding import decode_greedily
from cacovid.train.encoding import PreparedSample
from cacovid.train.marking import extract_answer, mark
from cacovid.train.packing import PaddedRows, pad_packed
from cacovid.types import Selection


@dataclass(frozen=True)
class Request:
    """One question, to be answered from some of its tokens.

    Args:
        prepared: The embedded question.
        selection: The kept tokens.
        hook: What prunes inside the language model, if a method does.
    """

    prepared: PreparedSample
    selection: Selection
    hook: LayerHook | None = None

    @property
    def length(self) -> int:
        """Tokens that enter the language model: the kept ones, the text, separators."""
        grid = self.prepared.prompt.grid
        dropped = grid.num_tokens - sum(self.selection.counts)
        return self.prepared.prompt.embeds.shape[0] - dropped


@dataclass(frozen=True)
class Reply:
    """What the model said.

    Args:
        answer: The letter of a multiple choice, else the text.
        mark: In [0, 1].
        tokens: Kept video tokens; where a method prunes inside, averaged over the layers, as its
            budget is.
        entering: Tokens that entered the language model.
    """

    answer: str
    mark: float
    tokens: int
    entering: int


class Answerer:
    """Puts requests to a model.

    Multiple choice is answered by one forward over the letters of the options; everything else by
    greedy generation. An answer of one right wording (`exact`) is not generated further than it
    takes to tell that it is another.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        max_new_tokens: Of a generated answer.
        batch_tokens: Prompt tokens of one forward, padding included.
    """

    def __init__(
        self, model: Any, tokenizer: Any, max_new_tokens: int = 64, batch_tokens: int = 32_768
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.batch_tokens = batch_tokens

    @torch.no_grad()
    def __call__(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies, in the requests' order.

        The same requests give the same replies; in another batch they may differ by the rounding
        of the model's arithmetic.

        Raises:
            InvalidInputError: for logits that are NaN or infinite.
        """
        replies: list[Reply | None] = [None] * len(requests)
        packed = []
        for number, request in enumerate(requests):
            if _packs(request):
                packed.append(number)
            else:
                replies[number] = _reply(request, self._alone(request))
        for by_letters in (True, False):
            own = [n for n in packed if _by_letters(requests[n]) == by_letters]
            for part in self._batches(own, requests):
                asked = [requests[n] for n in part]
                rows = _lay_out(asked)
                said = self._letters(asked, rows) if by_letters else self._generate(asked, rows)
                for number, request, answer in zip(part, asked, said, strict=True):
                    replies[number] = _reply(request, answer)
        return [reply for reply in replies if reply is not None]

    def _batches(self, own: Sequence[int], requests: Sequence[Request]) -> Iterator[list[int]]:
        """Requests by length; the longest of a batch is little longer than the shortest."""
        order = sorted(own, key=lambda n: (requests[n].length, n))
        part: list[int] = []
        for number in order:
            length = requests[number].length
            if part:
                shortest = requests[part[0]].length
                full = length * (len(part) + 1) > self.batch_tokens
                if full or length > 32 + 1.25 * shortest:
                    yield part
                    part = []
            part.append(number)
        if part:
            yield part

    def _alone(self, request: Request) -> str:
        """The answer to a prompt that the adapter writes down, whatever the model takes."""
        sample = request.prepared.sample
        inputs = adapter_for(self.model).prune(request.prepared.embedded, request.selection)
        by_letters = _by_letters(request)
        finite = FiniteLogits()
        with running(self.model, request.hook):
            out = self.model.generate(
                **inputs, **fixed_settings(), do_sample=False, num_beams=1,
                max_new_tokens=1 if by_letters else self._longest(sample),
                return_dict_in_generate=True, output_logits=by_letters, logits_processor=[finite],
            )  # fmt: skip
        check_answers(finite.broken(), [f"sample {sample.id!r}"], self.model)
        if by_letters:
            return self._likeliest(request, out.logits[0][0].float().cpu())
        new = out.sequences[0, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True)).strip()

    def _letters(self, asked: Sequence[Request], rows: PaddedRows) -> list[str]:
        with deepstack.reading(self.model):
            out = self.model(
                inputs_embeds=rows.embeds,
                attention_mask=rows.attention_mask,
                position_ids=rows.position_ids,
                logits_to_keep=1,
                use_cache=False,
            )
        logits = out.logits[:, -1].float().cpu()
        return [self._likeliest(request, row) for row, request in zip(logits, asked, strict=True)]

    def _likeliest(self, request: Request, logits: Tensor) -> str:
        """The letter that logits `[vocabulary]` on the host speak for."""
        sample = request.prepared.sample
        own = logits[letter_ids(self.tokenizer, sample.letters)]
        check_answers([not bool(own.isfinite().all())], [f"sample {sample.id!r}"], self.model)
        return sample.letters[int(own.argmax())]

    def _generate(self, asked: Sequence[Request], rows: PaddedRows) -> list[str]:
        longest = max(self._longest(r.prepared.sample) for r in asked)
        ids = [r.prepared.sample.id for r in asked]
        said = decode_greedily(self.model, self.tokenizer, rows, longest, ids)
        return [text.strip() for text in said]

    def _longest(self, sample: TrainingSample) -> int:
        if sample.problem_type != "exact":
            return self.max_new_tokens
        wording = self.tokenizer(extract_answer(sample.solution), add_special_tokens=False)
        return min(self.max_new_tokens, len(wording.input_ids) + 1)


def kept_rows(embedded: EmbeddedInputs, selection: Selection) -> tuple[Tensor, Tensor]:
    """Embeddings `[R, D]` and position ids `[R]` or `[3, R]` of a prompt's tokens that stay.

    Where the decoder adds features behind its first layers, the rows hold them too
    (`cacovid.models.deepstack.widened`).

    Args:
        embedded: One prompt.
        selection: The kept tokens, with embeddings where a method merged.
    """
    prompt = embedded.prompt
    kept = shorten(embedded, selection).kept
    embeds = prompt.embeds
    if selection.embeds is not None:
        video = prompt.video_index.index_select(0, selection.keep)
        embeds = embeds.index_copy(0, video, selection.embeds.to(embeds))
    rows = deepstack.widened(replace(prompt, embeds=embeds)).embeds
    return rows.index_select(0, kept), prompt.position_ids.index_select(-1, kept)


def same_answer(one: str, other: str) -> bool:
    """Whether two answers say the same, whatever case, spaces and a last full stop.

    >>> same_answer("Red.", "red"), same_answer("red", "blue")
    (True, False)
    """
    return _plain(one) == _plain(other)


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()


def _packs(request: Request) -> bool:
    """Whether a request goes into a batch; what prunes inside the model takes one at a time."""
    return request.hook is None


def _by_letters(request: Request) -> bool:
    return request.prepared.sample.problem_type == "multiple choice"


def _lay_out(asked: Sequence[Request]) -> PaddedRows:
    pieces = [kept_rows(request.prepared.embedded, request.selection) for request in asked]
    offsets = [0]
    for embeds, _ in pieces:
        offsets.append(offsets[-1] + embeds.shape[0])
    packed = torch.cat([embeds for embeds, _ in pieces])
    return pad_packed(packed, torch.cat([ids for _, ids in pieces], dim=-1), offsets)


def _reply(request: Request, answer: str) -> Reply:
    sample = request.prepared.sample
    if _by_letters(request):
        value = float(answer == sample.solution)
    else:
        value = mark(answer, sample.solution, sample.problem_type)
    tokens, hook = sum(request.selection.counts), request.hook
    if hook is not None:
        tokens = round(sum(hook.tokens_per_layer) / hook.depth)
    return Reply(answer, value, tokens, request.length)
