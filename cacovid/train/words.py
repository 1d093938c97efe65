"""What a word is, in scripts with and without spaces between words."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

#: Scripts that put no spaces between words, by the names of their characters in Unicode.
_UNSPACED = (
    "CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "BOPOMOFO", "YI ", "THAI", "LAO", "KHMER",
    "MYANMAR", "TIBETAN",
)  # fmt: skip


def space_unspaced(text: str) -> str:
    """Text in which each character of a script without word spaces is a word of its own.

    Word error rates of such texts are then character error rates (code points, composed where
    Unicode can compose them); other text is as it was.

    Args:
        text: Any text.

    >>> space_unspaced("STOP停止").split()
    ['STOP', '停', '止']
    """
    composed = unicodedata.normalize("NFC", text)
    return "".join(f" {c} " if _unspaced(c) else c for c in composed)


class RougeWords:
    """The words that ROUGE compares, for `rouge_score.rouge_scorer.RougeScorer(tokenizer=...)`.

    rouge-score's own tokenizer knows a-z and 0-9 and drops everything else, so that a text of
    another script has no words and every mark is 0. Of ASCII text these are exactly its words, with
    Porter's stems. Elsewhere a word is a run of letters, numbers and their marks, in lower case
    (NFKC); in scripts without spaces between words each character is one.

    Raises:
        ImportError: without nltk, which rouge-score brings.
    """

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stemmer: Any = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in order."""
        return [self._stem(word) for word in rouge_words(text)]

    def _stem(self, word: str) -> str:
        return str(self._stemmer.stem(word)) if word.isascii() and len(word) > 3 else word


def rouge_words(text: str) -> list[str]:
    """Words in lower case, without stems; see `RougeWords`.

    >>> rouge_words("Don't – voilà 红球!")
    ['don', 't', 'voilà', '红', '球']
    """
    plain = space_unspaced(unicodedata.normalize("NFKC", text)).lower()
    return "".join(c if _in_word(c) else " " for c in plain).split()


@cache
def _unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_UNSPACED)


@cache
def _in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM"
