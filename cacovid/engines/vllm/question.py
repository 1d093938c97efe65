"""The question in a request's token ids, and where its tokens stand relative to the video."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from cacovid.errors import InvalidInputError
from cacovid.models.base import QuestionSource
from cacovid.models.question import locate_questions


@dataclass(frozen=True)
class TextTokens:
    """Text tokens that a policy reads.

    Args:
        ids: Their ids.
        places: Tokens from the last video's placeholder to each: 1 is the one right behind it, -1
            the one right before.
        asking: Whether each belongs to the question.
    """

    ids: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    asking: tuple[bool, ...] = ()


#: The question of a prompt of nothing but placeholders, as vLLM's memory profiling makes it: any
#: token, for methods that cannot do without.
STAND_IN = TextTokens((0,), (1,), (True,))


def find_text(
    ids: Sequence[int],
    tokenizer: Any,
    video_id: int,
    placeholders: Collection[int],
    *,
    markers: Collection[int] = (),
    end_ids: Collection[int] = (),
    question: str | None = None,
    whole_prompt: bool = False,
) -> TextTokens:
    """What of a prompt's text a policy reads.

    Args:
        ids: The prompt as it comes to the processor: one placeholder for each video.
        tokenizer: The model's.
        video_id: Of the videos' placeholders.
        placeholders: Ids that stand for images and videos.
        markers: Ids around them: no part of a question, but of the text.
        end_ids: Ids that end a turn, for templates that are not known.
        question: Its text as it stands in the prompt; found from the template when omitted.
        whole_prompt: Whether the text around the question is read, too.

    Returns:
        The tokens; `STAND_IN` for a prompt of nothing but placeholders.

    Raises:
        InvalidInputError: if there is no video in the ids, or no question in a prompt with text.
    """
    video = max((place for place, token in enumerate(ids) if token == video_id), default=None)
    if video is None:
        raise InvalidInputError(
            "the request holds a video, and its prompt no placeholder of one; apply the model's "
            "chat template, or write the placeholder where the video stands"
        )
    media = frozenset(placeholders) | {video_id}
    skip = media.union(markers)
    if all(token in skip for token in ids):
        return STAND_IN
    source = QuestionSource(text=question, tokenizer=tokenizer, required=True)
    (asking,) = locate_questions([ids], source, placeholders=skip, end_ids=end_ids)
    chosen = frozenset(asking)
    places = [n for n, token in enumerate(ids) if token not in media] if whole_prompt else asking
    return TextTokens(
        tuple(ids[place] for place in places),
        tuple(place - video for place in places),
        tuple(place in chosen for place in places),
    )
