from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden_folder():
    return Path(__file__).resolve().parents[1] / "golden"
