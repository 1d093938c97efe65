"""The processor without torchvision: files, placeholders, pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.models.processing import VideoProcessor, load_processor
from cacovid.models.processor_files import write_processor
from cacovid.models.video_settings import VideoSettings


@pytest.fixture
def folder(tmp_path, tokenizer):
    write_processor(tmp_path, tokenizer, frame_size=24, tokens_per_side=6)
    return tmp_path


def test_written_and_read_again(folder, processor, lab):
    again = VideoProcessor.from_pretrained(folder)
    assert again.settings == processor.settings
    assert again.chat_template == processor.chat_template
    clips = [lab.clip(0), lab.clip(1)]
    first, second = (lab.ask(p, ["what colour ?", "which ?"], clips) for p in (processor, again))
    assert first.keys() == second.keys() == {"input_ids", "attention_mask", "pixel_values_videos"}
    for name, value in first.items():
        assert torch.equal(value, second[name])


def test_load_processor_without_torchvision(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    assert isinstance(load_processor(folder), VideoProcessor)


def test_the_file_is_what_transformers_reads(folder):
    config = json.loads((folder / "processor_config.json").read_text())
    assert config["processor_class"] == "LlavaOnevisionProcessor"
    assert config["num_image_tokens"] == 36
    assert config["video_processor"]["video_processor_type"] == "LlavaOnevisionVideoProcessor"
    assert config["video_processor"]["size"] == {"height": 24, "width": 24}
    assert config["video_processor"]["do_sample_frames"] is False


def test_older_files(folder, processor):
    config = json.loads((folder / "processor_config.json").read_text())
    video = config.pop("video_processor")
    (folder / "processor_config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(video))
    assert VideoProcessor.from_pretrained(folder).settings == processor.settings
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UnsupportedModelError, match="no processor settings"):
        VideoProcessor.from_pretrained(folder)


def test_settings_that_are_not_done(folder):
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    for change in ({"size": {"shortest_edge": 24}}, {"resample": 1}, {"do_normalize": False}):
        changed = {**config, "video_processor": {**config["video_processor"], **change}}
        path.write_text(json.dumps(changed))
        with pytest.raises(UnsupportedModelError, match="torchvision"):
            VideoProcessor.from_pretrained(folder)


def test_a_run_of_placeholders_per_video(processor, lab, tokenizer):
    batch = lab.ask(processor, ["what ?", "which is last ?"], [lab.clip(0, 2), lab.clip(1, 4)])
    counts = (batch["input_ids"] == processor.video_token_id).sum(-1)
    assert counts.tolist() == [2 * 9 + 1, 4 * 9 + 1]
    assert batch["input_ids"][0, 0] == tokenizer.pad_token_id, "padded on the left"
    assert [tuple(p.shape) for p in batch["pixel_values_videos"]] == [
        (2, 3, 24, 24),
        (4, 3, 24, 24),
    ]


def test_odd_numbers_of_patches():
    assert VideoSettings(384, 384, num_image_tokens=729).tokens_per_frame == 196


def test_pixels(processor, lab):
    frames = lab.clip(3)
    (pixels,) = processor(text="<video>", videos=frames)["pixel_values_videos"]
    expected = (frames.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(pixels.numpy(), expected, atol=1e-6)
    channels_first = torch.from_numpy(frames).permute(0, 3, 1, 2)
    (again,) = processor(text="<video>", videos=[[channels_first]])["pixel_values_videos"]
    assert torch.equal(again, pixels)


def test_resizing_keeps_uint8_steps(processor):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    pixels = processor(text="<video>", videos=frames)["pixel_values_videos"]
    assert tuple(pixels.shape) == (1, 2, 3, 24, 24)
    steps = (pixels * 0.5 + 0.5) * 255
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert abs(float(steps.mean()) - frames.mean()) < 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "<video>", "videos": []}, "1 <video> tokens for 0 videos"),
        ({"text": "what ?", "videos": np.zeros((1, 4, 4, 3), np.uint8)}, "0 <video> tokens for 1"),
        ({"text": "<video>", "videos": np.zeros((1, 4, 4, 3))}, "uint8"),
        ({"text": "<video>", "videos": np.zeros((1, 4, 4, 1), np.uint8)}, "F, H, W, 3"),
        ({"text": "<video>", "videos": np.zeros((0, 4, 4, 3), np.uint8)}, "at least one frame"),
        ({"text": "<image>", "images": [1]}, "videos only"),
        ({"text": None}, "expected text"),
    ],
)
def test_wrong_calls(processor, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        processor(**arguments)


def test_tokenizers_that_do_not_fit(tmp_path, lab):
    tokenizer = lab.make_tokenizer()
    tokenizer.padding_side = "right"
    with pytest.raises(InvalidInputError, match="padding_side"):
        write_processor(tmp_path, tokenizer, frame_size=24, tokens_per_side=6)
    tokenizer.padding_side = "left"
    with pytest.raises(InvalidInputError, match="into pieces"):
        write_processor(
            tmp_path, tokenizer, frame_size=24, tokens_per_side=6, video_token="what colour"
        )


def test_the_models_own_processor_agrees(folder, lab):
    pytest.importorskip("torchvision", exc_type=Exception)
    from transformers import AutoProcessor

    own = AutoProcessor.from_pretrained(folder)
    mine = VideoProcessor.from_pretrained(folder)
    for clips in ([lab.clip(0)], [np.tile(lab.clip(1), (1, 2, 3, 1))]):
        prompt = own.apply_chat_template(lab.user("what ?"), add_generation_prompt=True)
        expected = own(text=[prompt], videos=clips, return_tensors="pt", padding=True)
        got = mine(text=[prompt], videos=clips)
        assert torch.equal(got["input_ids"], expected["input_ids"])
        torch.testing.assert_close(
            got["pixel_values_videos"], expected["pixel_values_videos"], rtol=0, atol=1e-6
        )
