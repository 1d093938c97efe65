"""A clip, and a tiny untrained model in a directory: enough to run the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """A LLaVA-OneVision of the embedded model's shape with random weights."""
    pytest.importorskip("transformers")
    from cacovid.models import write_processor
    from cacovid.synthetic import world
    from cacovid.synthetic.tiny.model import PATCH, build_model
    from cacovid.synthetic.tiny.tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=1).save_pretrained(folder)
    write_processor(
        folder,
        tokenizer,
        frame_size=world.FRAME_SIZE,
        tokens_per_side=world.FRAME_SIZE // PATCH,
    )
    reading = {"max_frames": world.CLIP_FRAMES, "fps": world.CLIP_FPS}
    (folder / "cacovid.json").write_text(json.dumps(reading))
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """A real H.264 file of 16 frames, 576 tokens."""
    from cacovid.synthetic import make_scene

    return make_scene("test", seed=0, index=0).write(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture
def cacovid(tmp_path):
    """Runs `python -m cacovid` as users do, in an empty folder."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        # As long as the library is not installed, it is found by this.
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return subprocess.run(
            [sys.executable, "-m", "cacovid", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run
