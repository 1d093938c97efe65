"""Weights by the published names, and models of which something is missing."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.models import use_published_names
from cacovid.models.defaults import TINY_FOLDER
from cacovid.models.storage import load_whole


@pytest.fixture
def saved(tmp_path, session_model):
    session_model.save_pretrained(tmp_path)
    return tmp_path


def assert_published(folder):
    names = [n for n in load_file(folder / "model.safetensors") if "vision_tower." in n]
    assert names
    assert all("vision_tower.vision_model." in name for name in names)


def test_the_embedded_model_has_published_names():
    if not (TINY_FOLDER / "model.safetensors").exists():
        pytest.skip("the embedded model is not trained yet")
    assert_published(TINY_FOLDER)


def test_published_names_are_read_whole(saved, session_model):
    use_published_names(saved)
    assert_published(saved)
    assert use_published_names(saved) == 0
    loaded = load_whole(str(saved), torch.float32).state_dict()
    assert loaded.keys() == session_model.state_dict().keys()
    for name, weight in session_model.state_dict().items():
        assert torch.equal(loaded[name], weight), name


def test_missing_weights_are_an_error(saved):
    use_published_names(saved)
    path = saved / "model.safetensors"
    weights = load_file(path)
    lost = next(name for name in weights if "self_attn.k_proj.weight" in name)
    del weights[lost]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"lacks 1 weights .*k_proj"):
        load_whole(str(saved), torch.float32)


def test_no_weights(tmp_path):
    with pytest.raises(InvalidInputError, match=r"model\.safetensors is not there"):
        use_published_names(tmp_path)
