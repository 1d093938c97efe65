"""`score` and `hybrid`: policies stored beside a model, by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cacovid import (
    CrossAttentionConfig,
    CrossAttentionPolicy,
    Grid,
    Prompt,
    SurpriseConfig,
    SurprisePolicy,
    methods,
)
from cacovid.errors import InvalidInputError, WrongBaseModelError


class Model(nn.Linear):
    """What the methods look at of a model."""

    def __init__(self, folder, width=16):
        super().__init__(width, width)
        self.name_or_path = str(folder)
        self.config = type("Config", (), {"hidden_size": width})()


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    CrossAttentionPolicy(CrossAttentionConfig(hidden_size=16)).save_pretrained(tmp_path / "policy")
    SurprisePolicy(SurpriseConfig(hidden_size=16)).save_pretrained(tmp_path / "policy-score")
    return Model(tmp_path)


def prompt():
    rows, places = torch.randn(40, 16), torch.arange(40)
    return Prompt(rows, places, places[:36], places[36:], Grid([(4, 3, 3)]))


def test_score_is_the_policy_beside_the_model(model, tmp_path):
    from cacovid import load_policy

    method, given = methods.get("score", model=model), prompt()
    own = load_policy(tmp_path / "policy-score")(given).token.detach()
    assert method.name == "score" and not method.question_aware
    assert torch.equal(method(given, 0.2).keep, own.topk(7).indices.sort().values)


def test_cacovid_is_the_default_policy_beside_the_model_or_a_named_one(model, tmp_path):
    from cacovid import load_policy

    given = prompt()
    for name, folder in (("cacovid", "policy"), ("cacovid:score", "policy-score")):
        method = methods.get(name, model=model)
        own = load_policy(tmp_path / folder)(given).token.detach()
        assert method.name == name
        torch.testing.assert_close(method.scores(given).token, own)
    with pytest.raises(InvalidInputError, match=r"no policy 'cacovid:x'.*cacovid, cacovid:score"):
        methods.get("cacovid:x", model=model)


def test_hybrid_adds_the_prior(model):
    given = prompt()
    score, hybrid = methods.get("score", model=model), methods.get("hybrid:0.5", model=model)
    alone = methods.get("hybrid", model=model, weight=0.0)
    assert hybrid.name == "hybrid:0.5" and hybrid.question_aware
    assert methods.get("hybrid", model=model).name == "hybrid"
    added = 0.5 * torch.nn.functional.logsigmoid(score.scores(given).token)
    torch.testing.assert_close(hybrid.scores(given).token, alone.scores(given).token + added)
    assert torch.equal(hybrid.scores(given).frame, alone.scores(given).frame)
    assert hybrid(given, 0.2).counts == (7,)


def test_what_is_not_there_or_does_not_fit(model, tmp_path):
    for weight in ("-1", "much", "nan", "inf"):
        with pytest.raises(InvalidInputError, match="weight of method 'hybrid'"):
            methods.get(f"hybrid:{weight}", model=model)
    with pytest.raises(WrongBaseModelError, match="hidden size 16"):
        methods.get("score", model=Model(tmp_path, 8))
    CrossAttentionPolicy(CrossAttentionConfig(hidden_size=16)).save_pretrained(
        tmp_path / "policy-score"
    )
    with pytest.raises(InvalidInputError, match="holds a CrossAttentionPolicy"):
        methods.get("score", model=model)
    with pytest.raises(InvalidInputError, match=r"there is no .*policy-score; train one"):
        methods.get("score", model=Model(tmp_path / "elsewhere"))
