"""Every way of choosing video tokens, under one registry and with the same exact budget.

A method is called as `method(prompt, retention, seed=0) -> Selection` and keeps exactly
`max(1, floor(r*N))` tokens of each packed video.

>>> from cacovid import methods
>>> methods.names()
('attention', 'random', 'uniform')
>>> methods.get("attention").question_aware
True
"""

from __future__ import annotations

from cacovid.methods.attention import AttentionMethod
from cacovid.methods.base import Method, ScoredMethod, score_and_select
from cacovid.methods.policy import PolicyMethod
from cacovid.methods.random import RandomMethod
from cacovid.methods.registry import get, names, register
from cacovid.methods.top_k import top_k
from cacovid.methods.uniform import UniformMethod, even_positions

__all__ = [
    "AttentionMethod",
    "Method",
    "PolicyMethod",
    "RandomMethod",
    "ScoredMethod",
    "UniformMethod",
    "even_positions",
    "get",
    "names",
    "register",
    "score_and_select",
    "top_k",
]

register("attention", AttentionMethod)
register("random", RandomMethod)
register("uniform", UniformMethod)
