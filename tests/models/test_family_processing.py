"""The families' processors without torchvision, and whole checkpoints asked on the command line."""

from __future__ import annotations

import ast
import json
import math
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cacovid import cli
from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.models import adapter_for, prune_inputs, running
from cacovid.models.generation import release
from cacovid.models.inputs import video_inputs
from cacovid.models.processing import load_processor
from tests.models.families import FAMILIES, FRAME, SIDE, VIDEO, make_tokenizer

QUESTION = "what colour is the first thing ?"
TEMPLATE = (
    "{%% for m in messages %%}<|im_start|> {{ m['role'] }} "
    "{%% for p in m['content'] %%}{%% if p['type'] == 'video' %%}%s {%% else %%}{{ p['text'] }}"
    "{%% endif %%}{%% endfor %%}<|im_end|> {%% endfor %%}"
    "{%% if add_generation_prompt %%}<|im_start|> assistant {%% endif %%}"
)
#: The files of each family's processor, as its published checkpoints have them, in small.
PATCHES = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
LIMITS = {"shortest_edge": 256, "longest_edge": 1024}
FILES = {
    "qwen2_vl": {"preprocessor_config.json": {
        "processor_class": "Qwen2VLProcessor", "min_pixels": 256, "max_pixels": 1024, **PATCHES}},
    "qwen2_5_vl": {"preprocessor_config.json": {
        "processor_class": "Qwen2_5_VLProcessor", "size": LIMITS, **PATCHES}},
    "qwen3_vl": {"video_preprocessor_config.json": {
        "processor_class": "Qwen3VLProcessor", **PATCHES,
        "size": {"shortest_edge": 1024, "longest_edge": 4096}}},
    "llava_onevision": {"processor_config.json": {
        "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 36, "video_token": VIDEO,
        "video_processor": {"size": {"height": FRAME, "width": FRAME}}}},
    "llava_next_video": {
        "processor_config.json": {"processor_class": "LlavaNextVideoProcessor", "patch_size": 4,
                                  "video_token": VIDEO},
        "video_preprocessor_config.json": {
            "size": {"shortest_edge": FRAME}, "crop_size": {"height": FRAME, "width": FRAME}}},
    "internvl": {
        "processor_config.json": {"processor_class": "InternVLProcessor",
                                  "image_seq_length": SIDE**2},
        "video_preprocessor_config.json": {"size": {"height": FRAME, "width": FRAME}}},
}  # fmt: skip
SHOWN = {"llava_onevision": VIDEO, "llava_next_video": VIDEO, "internvl": "<video>"}


#: InternVL writes `<video>` in a text, and an image's placeholder in the prompt.
NAMES = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": VIDEO}


def write_files(folder, family):
    tokenizer = make_tokenizer(**(NAMES if family.name == "internvl" else {}))
    shown = SHOWN.get(family.name, f"<|vision_start|>{VIDEO}<|vision_end|>")
    tokenizer.chat_template = TEMPLATE % shown
    tokenizer.save_pretrained(folder)
    for name, content in FILES[family.name].items():
        (folder / name).write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def without_torchvision(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)


@pytest.fixture(scope="module", params=FAMILIES, ids=repr)
def stored(request, tmp_path_factory):
    """A checkpoint of each family: weights, tokenizer, and the processor's files."""
    family, tokenizer = request.param, make_tokenizer()
    folder = tmp_path_factory.mktemp(family.name)
    model = family.make_model(tokenizer)
    model.save_pretrained(folder)
    write_files(folder, family)
    (folder / "cacovid.json").write_text(json.dumps({"max_frames": 4, "fps": 8.0}))
    return SimpleNamespace(folder=folder, model=model)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    import av

    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for shade in range(0, 240, 20):
            picture = np.full((48, 64, 3), shade, dtype=np.uint8)
            picture[:, : shade // 4] = (255 - shade, shade, 90)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_cacovid_ask(stored, video, capsys):
    """`cacovid ask --model DIR` on a file."""
    arguments = ["ask", video, QUESTION, "--model", stored.folder, "--retention", 0.25, "--json"]
    arguments += ["--device", "cpu", "--max-new-tokens", 3, "--method", "attention:1:question"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["tokens"]["kept"] == answer["tokens"]["video"] // 4 > 0


def test_the_processors_inputs_are_the_models(stored):
    """What the processor makes is what plain `generate` reads, and keeping all gives the same."""
    processor = load_processor(stored.folder)
    frames = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
    inputs = video_inputs(stored.model, processor, frames, QUESTION)
    settings = {"max_new_tokens": 4, "do_sample": False}
    plain = stored.model.generate(**inputs, **settings)
    pruned = prune_inputs(
        stored.model, inputs, "attention:1:question", 1.0, question=QUESTION,
        tokenizer=processor.tokenizer,
    )  # fmt: skip
    with running(stored.model):
        assert torch.equal(stored.model.generate(**pruned.inputs, **settings), plain)
    adapter = adapter_for(stored.model)
    placeholders = inputs["input_ids"] == adapter.video_token_id(stored.model.config)
    assert pruned.tokens["video"] + adapter.separators == int(placeholders.sum())


def qwen(name, folder):
    family = next(family for family in FAMILIES if family.name == name)
    write_files(folder, family)
    return load_processor(folder)


def smart_resize_of(module):
    """The function alone: its module does not import without torchvision."""
    source = Path(find_spec(f"transformers.models.{module}").origin).read_text()
    (function,) = (
        node for node in ast.parse(source).body if getattr(node, "name", "") == "smart_resize"
    )
    scope = {"math": math}
    exec(ast.unparse(function), scope)
    return scope["smart_resize"]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("qwen2_vl", "qwen2_vl.image_processing_qwen2_vl"),
        ("qwen3_vl", "qwen3_vl.video_processing_qwen3_vl"),
    ],
)
def test_sizes_are_those_of_transformers(name, module, tmp_path):
    if name == "qwen3_vl" and release() < (5, 18):
        pytest.skip("refuses small frames")
    smart_resize = smart_resize_of(module)
    settings = qwen(name, tmp_path).settings
    for frames in (2, 3, 4, 7):
        for height, width in ((5, 9), (16, 16), (17, 23), (24, 40), (48, 64), (200, 31), (7, 99)):
            more = {"num_frames": frames, "temporal_factor": 2} if settings.per_video else {}
            expected = smart_resize(
                height=height, width=width, factor=8, min_pixels=settings.min_pixels,
                max_pixels=settings.max_pixels, **more,
            )  # fmt: skip
            assert settings.size_of(frames, height, width) == expected, (frames, height, width)
    with pytest.raises(InvalidInputError, match="ratio below 200"):
        settings.size_of(4, 4000, 16)


def test_patches_stand_in_the_order_of_merging(tmp_path):
    """By hand: token after token, its four patches, each two frames deep."""
    processor = qwen("qwen2_vl", tmp_path)
    frames = torch.from_numpy(
        np.random.default_rng(1).integers(0, 256, (3, 3, 16, 24), dtype=np.uint8)
    )
    rows, grid = processor.patches(frames)
    assert grid == (2, 4, 6)
    pixels = processor.settings.normalised(frames)
    pixels = torch.cat((pixels, pixels[-1:]))
    expected = []
    for t in range(2):
        for high in range(2):
            for wide in range(3):
                for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    top, left = 8 * high + 4 * y, 8 * wide + 4 * x
                    patch = pixels[2 * t : 2 * t + 2, :, top : top + 4, left : left + 4]
                    expected.append(patch.transpose(0, 1).flatten())
    assert torch.equal(rows, torch.stack(expected))


def metadata(indices, fps=8.0, total=24):
    from transformers.video_utils import VideoMetadata

    return VideoMetadata(total_num_frames=total, fps=fps, frames_indices=list(indices))


def test_seconds_are_told(tmp_path):
    frames = np.zeros((3, 16, 16, 3), dtype=np.uint8)
    second = qwen("qwen2_5_vl", tmp_path)
    batch = second(text=VIDEO, videos=[frames], video_metadata=[metadata([0, 8, 16])])
    # Three of 24 frames at 8 a second are one a second; two of them are a step in time.
    assert batch["second_per_grid_ts"].tolist() == [2.0]
    assert set(batch["mm_token_type_ids"].unique().tolist()) == {2}
    third = qwen("qwen3_vl", tmp_path)
    text = f"what <|vision_start|>{VIDEO}<|vision_end|> ?"
    ids = third(text=text, videos=[frames], video_metadata=[metadata([0, 8, 16])])["input_ids"][0]
    said = "".join(third.tokenizer.convert_ids_to_tokens(ids.tolist())).replace(VIDEO, "")
    whole = "<|vision_start|><|vision_end|>"
    assert said == f"what<0.5seconds>{whole}<2.0seconds>{whole}?"
    with pytest.raises(InvalidInputError, match="video_metadata has 2 entries for 1 videos"):
        third(text=text, videos=[frames], video_metadata=[None, None])


def test_the_middle_of_a_frame(tmp_path):
    family = next(family for family in FAMILIES if family.name == "llava_next_video")
    write_files(tmp_path, family)
    processor = load_processor(tmp_path)
    frames = torch.from_numpy(
        np.random.default_rng(2).integers(0, 256, (2, 3, 24, 40), dtype=np.uint8)
    )
    expected = processor.settings.normalised(frames[..., 8:32])
    assert torch.equal(processor.pixels(frames), expected)


def test_processors_that_are_not_known(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"processor_class": "OtherProcessor"}')
    with pytest.raises(UnsupportedModelError, match="OtherProcessor, whose work is not done here"):
        load_processor(tmp_path)
