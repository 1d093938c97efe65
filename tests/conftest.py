"""Triton's interpreter serves where there is no GPU.

It has to be chosen before Triton is imported for the first time, by whichever test. On a machine
with a GPU the same tests run the compiled kernels on it.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def random_qa():
    """A `VideoQA` of the embedded model's shape that has learned nothing."""
    from cacovid import VideoQA
    from cacovid.models.defaults import ReadingDefaults
    from cacovid.models.processing import VideoProcessor
    from cacovid.models.video_settings import VideoSettings
    from cacovid.synthetic import world
    from cacovid.synthetic.tiny.model import build_model
    from cacovid.synthetic.tiny.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=1)
    # Wide weights, so that what the model says hangs on what it sees.
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=1.5 * module.in_features**-0.5)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    processor = VideoProcessor(tokenizer, VideoSettings(144, 144, num_image_tokens=144))
    reading = ReadingDefaults(world.CLIP_FRAMES, world.CLIP_FPS)
    return VideoQA(model.eval(), processor, reading=reading)
