"""The configurations that the project offers can be read."""

from pathlib import Path

import pytest

from cacovid.errors import InvalidInputError
from cacovid.train.config import PolicySection, read_config

FOLDER = Path(__file__).resolve().parents[2] / "bench" / "configs"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("tiny-*.yaml")), ids=lambda path: path.stem)
def test_configurations_can_be_read(path):
    config = read_config(path)
    assert config.model == "tiny" and config.output.startswith("runs/")


@pytest.mark.parametrize(
    "other", [{"type": "cross_attention"}, {"from_language_model": False}, {"start": "folder"}]
)
def test_roles_are_exchanged_of_a_layer_only(other):
    wanted = {"type": "self_attention", "exchange_roles": True}
    assert PolicySection(**wanted).exchange_roles
    with pytest.raises(InvalidInputError, match="exchange_roles is for a self_attention policy"):
        PolicySection(**{**wanted, **other})
