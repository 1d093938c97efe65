"""A model of the embedded model's shape with fresh weights, and a few questions."""

import pytest
import torch


@pytest.fixture(scope="session")
def tokenizer():
    from cacovid.synthetic.tiny.tokenizer import build_tokenizer

    return build_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer):
    from cacovid.synthetic.tiny.model import build_model
    from cacovid.train.rewards import freeze

    model = freeze(build_model(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


@pytest.fixture(scope="session")
def processor(tokenizer):
    from cacovid.models.processing import VideoProcessor
    from cacovid.models.video_settings import VideoSettings

    settings = VideoSettings(height=144, width=144, num_image_tokens=144)
    return VideoProcessor(tokenizer, settings)


@pytest.fixture(scope="session")
def samples():
    from cacovid.train.data import embedded_samples

    return embedded_samples("train", 5, scenes=3, per_scene=4)


@pytest.fixture(scope="session")
def encoder(model, processor):
    from cacovid.train.data import read_sample_frames
    from cacovid.train.encoding import SampleEncoder

    return SampleEncoder(model, processor, read_sample_frames)


@pytest.fixture
def policy():
    from cacovid import CrossAttentionConfig, CrossAttentionPolicy

    torch.manual_seed(0)
    config = CrossAttentionConfig(hidden_size=192, slots=4, slot_width=16, head_size=8)
    return CrossAttentionPolicy(config)
