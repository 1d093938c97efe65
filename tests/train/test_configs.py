"""The configurations that the project offers can be read."""

from pathlib import Path

import pytest

from cacovid.train.config import read_config

FOLDER = Path(__file__).resolve().parents[2] / "bench" / "configs"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("tiny-*.yaml")), ids=lambda path: path.stem)
def test_configurations_can_be_read(path):
    config = read_config(path)
    assert config.model == "tiny" and config.output.startswith("runs/")
