"""Policies: what gives every video token and every frame a score.

Every policy is called as `policy(prompt) -> Scores`, trained by `cacovid.train`, and stored as
`model.safetensors` with `config.json`.
"""

from cacovid.policies.cross_attention import CrossAttentionConfig, CrossAttentionPolicy
from cacovid.policies.self_attention import SelfAttentionPolicy
from cacovid.policies.self_attention_config import SelfAttentionConfig
from cacovid.policies.storage import StoredPolicy, load_policy
from cacovid.policies.surprise import SurpriseConfig, SurprisePolicy

__all__ = [
    "CrossAttentionConfig",
    "CrossAttentionPolicy",
    "SelfAttentionConfig",
    "SelfAttentionPolicy",
    "StoredPolicy",
    "SurpriseConfig",
    "SurprisePolicy",
    "load_policy",
]
