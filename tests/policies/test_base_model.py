"""Which model a policy is for, by its hidden size and by names."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
from torch import nn

from cacovid import CrossAttentionConfig, CrossAttentionPolicy, load_policy
from cacovid.errors import WrongBaseModelError
from cacovid.models.defaults import TINY_FOLDER
from cacovid.models.resolve import resolve_method
from cacovid.policies import base_model
from cacovid.policies.base_model import same_model

LLAVA = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"
NAME = LLAVA.partition("/")[2]


class Model(nn.Linear):
    """What is looked at of a model."""

    def __init__(self, name, width=16):
        super().__init__(width, width)
        self.name_or_path = str(name)
        self.config = SimpleNamespace(hidden_size=width, name_or_path=str(name))


@pytest.fixture
def stored(tmp_path):
    """Stores a policy for the base model of a name, and gives its place."""

    def store(name, folder="policy"):
        policy = CrossAttentionPolicy(CrossAttentionConfig(hidden_size=16, base_model=name))
        policy.save_pretrained(tmp_path / folder)
        return tmp_path / folder

    base_model._warned.clear()
    return store


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (LLAVA, LLAVA, True),
        (LLAVA, LLAVA.upper(), True),
        (LLAVA, f"/models/{NAME}", True),
        (LLAVA, f"/models/{NAME}/", True),
        (LLAVA, "/hub/models--llava-hf--llava-onevision-qwen2-7b-ov-hf/snapshots/0a1b2c", True),
        (QWEN, "/hub/models--llava-hf--llava-onevision-qwen2-7b-ov-hf/snapshots/0a1b2c", False),
        ("tiny", str(TINY_FOLDER), True),
        ("tiny", "/elsewhere/cacovid/assets/tiny", True),
        ("tiny", LLAVA, False),
        (LLAVA, str(TINY_FOLDER), False),
        ("tiny", "owner/tiny", False),
        (LLAVA, QWEN, False),
        (LLAVA, f"another/{NAME}", None),
        (LLAVA, "/models/mine", None),
        ("tiny", "/models/mine", None),
        ("/runs/a", "/runs/b", None),
        ("a", "b", None),
    ],
)
def test_what_names_tell(one, other, same):
    assert same_model(one, other) is same
    assert same_model(other, one) is same


@pytest.mark.parametrize("model", [Model(QWEN), Model(TINY_FOLDER)])
def test_a_policy_for_another_model_is_refused_by_every_way_in(stored, model):
    place = stored(LLAVA)
    for load in (
        lambda: load_policy(place, base_model=model),
        lambda: load_policy(place, base_model=model.name_or_path),
        lambda: resolve_method(place, model),
        lambda: resolve_method(load_policy(place), model),
    ):
        with pytest.raises(WrongBaseModelError, match=r"config\.json") as raised:
            load()
        assert LLAVA in str(raised.value) and model.name_or_path in str(raised.value)


def test_a_policy_for_the_embedded_model_is_refused_by_others(stored):
    with pytest.raises(WrongBaseModelError, match=r"'tiny'.*Qwen"):
        resolve_method(stored("tiny"), Model(QWEN))
    resolve_method(stored("tiny"), Model(TINY_FOLDER))


def test_names_that_do_not_tell_are_warned_of_once(stored):
    place = stored(LLAVA)
    with pytest.warns(UserWarning, match=f"{LLAVA}.*/models/mine"):
        resolve_method(place, Model("/models/mine"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve_method(place, Model("/models/mine"))


@pytest.mark.parametrize("said", [None, LLAVA])
def test_what_fits_gives_no_warning(stored, said):
    model = Model(f"/models/{NAME}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve_method(stored(said), model)
        resolve_method(stored(said), Model(""))  # a model without a name: the hidden size alone
        model.name_or_path = "/models/mine"  # its configuration says what it is
        resolve_method(stored(said), model)


def test_a_policy_in_the_models_own_folder_is_its_own(stored, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_policy(stored(LLAVA), base_model=Model(tmp_path))
