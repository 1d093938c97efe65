"""Which tokens of a prompt are the question: the user's text with its options.

Template markers, the role, placeholders and the system text are no part of it. The places that are
tried, in this order:

1. a mask that the caller gives;
2. the question's text that the caller gives, found again among the tokens;
3. the last user turn between `<|im_start|>user` and `<|im_end|>`, for tokenizers that know these;
4. without a tokenizer of that kind: the text from the last video to the next token that ends a turn
   (the model's `eos_token_id`s), or to the prompt's end.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from cacovid.errors import InvalidInputError
from cacovid.models.base import QuestionSource
from cacovid.models.tokenizer import special_tokens

TURN_BEGIN, TURN_END, ROLE = "<|im_start|>", "<|im_end|>", "user"

#: How byte-level and sentence-piece vocabularies write spaces and line ends.
_SPACES = str.maketrans("", "", "\u0120\u010a\u0109\u2581 \n\t\r")


def locate_questions(
    rows: Sequence[Sequence[int]],
    source: QuestionSource,
    *,
    placeholders: Collection[int],
    end_ids: Collection[int] = (),
    masks: Sequence[Sequence[bool]] | None = None,
    frame_label: re.Pattern[str] | None = None,
) -> list[list[int]]:
    """Positions of the question's tokens in each prompt, ascending.

    Args:
        rows: Token ids of each prompt, without padding.
        source: What the caller gave.
        placeholders: Ids that stand for image and video tokens, and the markers around these.
        end_ids: Ids that end a turn; used where no tokenizer tells the template's markers.
        masks: `source.mask` cut like `rows`.
        frame_label: What the processor writes before the placeholders of a frame, such as a
            timestamp, without spaces; no part of a question. Matched at the end of a text.

    Raises:
        InvalidInputError: if a given text is not in its prompt or cannot be looked for, if there
            is not one text per prompt, or if a question is required and not found.
    """
    skip = frozenset(placeholders)
    if masks is not None:
        found = [[i for i, chosen in enumerate(mask) if chosen] for mask in masks]
    elif source.text is not None:
        found = _by_text(rows, source, skip)
    else:
        markers = _markers(source.tokenizer)
        if markers is not None:
            found = [
                _last_user_turn(row, source.tokenizer, markers, skip, frame_label) for row in rows
            ]
        else:
            found = [[] for _ in rows]
        found = [
            hit or _after_last_video(row, skip, end_ids)
            for hit, row in zip(found, rows, strict=True)
        ]
    if source.required:
        for number, hit in enumerate(found):
            if not hit:
                raise InvalidInputError(
                    f"no question was found in prompt {number}; pass question= (its text together "
                    f"with tokenizer=, or a [B, S] bool mask over input_ids)"
                )
    return found


def _by_text(
    rows: Sequence[Sequence[int]], source: QuestionSource, skip: frozenset[int]
) -> list[list[int]]:
    if source.tokenizer is None:
        raise InvalidInputError(
            "question= was given as text, but there is no tokenizer to find it with; pass "
            "tokenizer=, or a [B, S] bool mask"
        )
    assert source.text is not None
    texts = [source.text] * len(rows) if isinstance(source.text, str) else list(source.text)
    if len(texts) != len(rows):
        raise InvalidInputError(
            f"question= holds {len(texts)} texts for {len(rows)} prompts; give one, or one each"
        )
    found = []
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        hit = _find_text(row, text, source.tokenizer, skip)
        if not hit:
            raise InvalidInputError(
                f"the question {text!r} does not stand in prompt {number}; give the text exactly "
                f"as it is in the prompt, or a [B, S] bool mask"
            )
        found.append(hit)
    return found


def _find_text(row: Sequence[int], text: str, tokenizer: Any, skip: frozenset[int]) -> list[int]:
    # Vocabulary entries without spaces are compared, not ids: the first and the last word of a
    # text are often cut differently inside a prompt. The last place where it stands is taken.
    wanted = "".join(_pieces(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer))
    if not wanted:
        return []
    places = [place for place, token in enumerate(row) if token not in skip]
    letters: list[str] = []
    owners: list[int] = []
    before = -1
    for place, piece in zip(places, _pieces([row[i] for i in places], tokenizer), strict=True):
        # Placeholders are one letter that no text has, so that no match goes across them.
        piece = piece if place == before + 1 else "\0" + piece
        letters.append(piece)
        owners.extend([place] * len(piece))
        before = place
    begin = "".join(letters).rfind(wanted)
    if begin < 0:
        return []
    # Spaces have no letters here; those inside the question belong to it.
    return list(range(owners[begin], owners[begin + len(wanted) - 1] + 1))


def _pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
    return [
        str(piece or "").translate(_SPACES) for piece in tokenizer.convert_ids_to_tokens(list(ids))
    ]


def _markers(tokenizer: Any) -> tuple[int, int] | None:
    if tokenizer is None:
        return None
    vocabulary = tokenizer.get_vocab()
    if TURN_BEGIN not in vocabulary or TURN_END not in vocabulary:
        return None
    return vocabulary[TURN_BEGIN], vocabulary[TURN_END]


def _last_user_turn(
    row: Sequence[int],
    tokenizer: Any,
    markers: tuple[int, int],
    skip: frozenset[int],
    frame_label: re.Pattern[str] | None,
) -> list[int]:
    begin_id, end_id = markers
    for begin in reversed([i for i, token in enumerate(row) if token == begin_id]):
        end = next((i for i in range(begin + 1, len(row)) if row[i] == end_id), len(row))
        body = _without_role(row, begin + 1, end, tokenizer)
        if body is None:
            continue
        _refuse_text_behind(row, end, begin_id, tokenizer)
        text = [i for i in range(body, end) if row[i] not in skip]
        if frame_label is not None:
            text = _without_labels(row, text, tokenizer, frame_label)
        pieces = _pieces([row[i] for i in text], tokenizer)
        filled = [number for number, piece in enumerate(pieces) if piece]
        return text[filled[0] : filled[-1] + 1] if filled else []
    return []


def _refuse_text_behind(row: Sequence[int], end: int, begin_id: int, tokenizer: Any) -> None:
    """Refuses a turn that ended before its text did: between turns no text stands."""
    marks = special_tokens(tokenizer)
    after = next((i for i in range(end, len(row)) if row[i] == begin_id), len(row))
    behind = [token for token in row[end:after] if token not in marks]
    if "".join(_pieces(behind, tokenizer)):
        raise InvalidInputError(
            f"behind the end of the user's turn stands more text: "
            f"{tokenizer.decode(behind).strip()!r:.80}. A question that holds {TURN_END} ends "
            f"there; take it out of the question, or pass question= (a [B, S] bool mask)"
        )


def _without_labels(
    row: Sequence[int], text: Sequence[int], tokenizer: Any, label: re.Pattern[str]
) -> list[int]:
    """Places of a text without those of the labels that stand right before placeholders."""
    kept: list[int] = []
    for number, place in enumerate(text):
        kept.append(place)
        followed = text[number + 1] if number + 1 < len(text) else len(row)
        if followed == place + 1:
            continue
        # Only back to the placeholders before; spaces have no letters.
        begin = len(kept) - 1
        while begin > 0 and kept[begin - 1] == kept[begin] - 1:
            begin -= 1
        pieces = _pieces([row[i] for i in kept[begin:]], tokenizer)
        hit = label.search("".join(pieces))
        if hit is not None:
            letters = 0
            for offset, piece in enumerate(pieces):
                letters += len(piece)
                if letters > hit.start():
                    del kept[begin + offset :]
                    break
    return kept


def _without_role(row: Sequence[int], begin: int, end: int, tokenizer: Any) -> int | None:
    """Where the turn's content begins, or None where it is not the user's."""
    role = ""
    for place in range(begin, min(end, begin + 4)):
        role += _pieces([row[place]], tokenizer)[0]
        if role == ROLE:
            return place + 1
        if not ROLE.startswith(role):
            return None
    return None


def _after_last_video(
    row: Sequence[int], skip: frozenset[int], end_ids: Collection[int]
) -> list[int]:
    last = max((i for i, token in enumerate(row) if token in skip), default=-1)
    end = next((i for i in range(last + 1, len(row)) if row[i] in end_ids), len(row))
    return list(range(last + 1, end))
