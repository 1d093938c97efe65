"""Every way of choosing video tokens, under one registry and with the same exact budget.

A method is called as `method(prompt, retention, seed=0) -> Selection` and keeps exactly
`max(1, floor(r*N))` tokens of each packed video. The methods that prune inside the language model
(`fastv`, `framefusion`) give a `LayerHook` to run with, and keep a budget averaged over layers.

>>> from cacovid import methods
>>> "divprune" in methods.names()
True
>>> methods.get("attention").question_aware
True
"""

from __future__ import annotations

from cacovid.methods.attention import AttentionMethod
from cacovid.methods.base import Method, ScoredMethod, score_and_select
from cacovid.methods.beside import hybrid_beside, policy_beside, score_beside
from cacovid.methods.cdpruner import CDPrunerMethod
from cacovid.methods.divprune import DivPruneMethod
from cacovid.methods.dpc_knn import DpcKnnMethod
from cacovid.methods.evs import EvsMethod
from cacovid.methods.fastv import FastVMethod
from cacovid.methods.fastvid import FastVidMethod
from cacovid.methods.fewer_frames import FewerFramesMethod
from cacovid.methods.framefusion import FrameFusionMethod
from cacovid.methods.holitom import HoliTomMethod
from cacovid.methods.hybrid import HybridMethod
from cacovid.methods.inside import InsideMethod, LayerHook, Reduced
from cacovid.methods.oracle import OracleMethod
from cacovid.methods.policy import PolicyMethod
from cacovid.methods.prunevid import PruneVidMethod
from cacovid.methods.random import RandomMethod
from cacovid.methods.registry import get, names, register
from cacovid.methods.top_k import top_k
from cacovid.methods.uniform import UniformMethod, even_positions
from cacovid.methods.vidcom2 import VidCom2Method
from cacovid.methods.video_tokens import Choice, PerVideoMethod, VideoTokens
from cacovid.methods.visionzip import VisionZipMethod

__all__ = [
    "AttentionMethod",
    "CDPrunerMethod",
    "Choice",
    "DivPruneMethod",
    "DpcKnnMethod",
    "EvsMethod",
    "FastVMethod",
    "FastVidMethod",
    "FewerFramesMethod",
    "FrameFusionMethod",
    "HoliTomMethod",
    "HybridMethod",
    "InsideMethod",
    "LayerHook",
    "Method",
    "OracleMethod",
    "PerVideoMethod",
    "PolicyMethod",
    "PruneVidMethod",
    "RandomMethod",
    "Reduced",
    "ScoredMethod",
    "UniformMethod",
    "VidCom2Method",
    "VideoTokens",
    "VisionZipMethod",
    "even_positions",
    "get",
    "names",
    "register",
    "score_and_select",
    "top_k",
]

register("attention", AttentionMethod)
register("cacovid", policy_beside, takes_model=True)
register("cdpruner", CDPrunerMethod)
register("divprune", DivPruneMethod)
register("dpc_knn", DpcKnnMethod)
register("evs", EvsMethod)
register("fastv", FastVMethod)
register("fastvid", FastVidMethod)
register("fewer_frames", FewerFramesMethod)
register("framefusion", FrameFusionMethod)
register("holitom", HoliTomMethod)
register("hybrid", hybrid_beside, takes_model=True)
register("oracle", OracleMethod)
register("prunevid", PruneVidMethod)
register("random", RandomMethod)
register("score", score_beside, takes_model=True)
register("uniform", UniformMethod)
register("vidcom2", VidCom2Method)
register("visionzip", VisionZipMethod)
