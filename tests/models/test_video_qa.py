"""`VideoQA`: from a directory and a video to an answer, with what it took."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cacovid import (
    CrossAttentionConfig,
    CrossAttentionPolicy,
    SurpriseConfig,
    SurprisePolicy,
    methods,
)
from cacovid.errors import InvalidInputError, UnsupportedModelError, VideoReadError
from cacovid.models import VideoQA, prune_inputs
from cacovid.models import defaults as model_defaults

QUESTION = "what colour is the first thing ?"
STAGES = ["read", "vision", "score+select", "prefill", "decode"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, lab, session_model, tokenizer):
    from cacovid.models import use_published_names, write_processor

    folder = tmp_path_factory.mktemp("stored")
    session_model.save_pretrained(folder)
    use_published_names(folder)
    write_processor(folder, tokenizer, frame_size=24, tokens_per_side=6)
    (folder / "cacovid.json").write_text(json.dumps({"max_frames": 4, "fps": 8.0}))
    return folder


@pytest.fixture(scope="module")
def qa(folder):
    return VideoQA.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def video(tmp_path_factory, lab):
    import av

    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for shade in range(0, 240, 20):
            picture = np.full((48, 64, 3), shade, dtype=np.uint8)
            picture[:, : shade // 4] = (255 - shade, shade, 90)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_answer(qa, lab, session_model, processor, tokenizer):
    clip = lab.clip(1, 4)
    stages = []
    answer = qa.ask(clip, QUESTION, 0.3, max_new_tokens=5, on_stage=stages.append)
    inputs = lab.ask(processor, [QUESTION], [clip])
    pruned = prune_inputs(session_model, inputs, "attention", 0.3, tokenizer=tokenizer)
    out = session_model.generate(**pruned.inputs, max_new_tokens=5, do_sample=False)
    new = out[0, pruned.inputs["input_ids"].shape[1] :]
    assert answer.text == tokenizer.decode(new, skip_special_tokens=True).strip()
    assert torch.equal(answer.selection.keep, pruned.selection.keep)
    assert torch.equal(answer.scores.token, pruned.scores.token)
    assert answer.tokens == {"video": 36, "kept": 10}
    assert answer.grid.sizes == ((4, 3, 3),)
    assert (answer.method, answer.retention, answer.question) == ("attention", 0.3, QUESTION)
    assert np.array_equal(answer.frames, clip)
    assert stages == STAGES
    assert list(answer.timings) == STAGES
    assert all(seconds >= 0 for seconds in answer.timings.values())
    assert answer.timings["prefill"] > 0


def test_the_question_reaches_the_choice(qa, lab):
    clip = lab.clip(1, 4)
    first, second = (
        qa.ask(clip, q, 0.3, method="attention:1:question", max_new_tokens=1).scores.token
        for q in (QUESTION, "which shape is moving ?")
    )
    assert not torch.equal(first, second)


def test_method_and_seed_of_one_question(qa, lab):
    clip = lab.clip(1, 4)
    kept = [
        qa.ask(clip, QUESTION, 0.3, method="random", seed=seed, max_new_tokens=1).selection.keep
        for seed in (1, 1, 2)
    ]
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])
    assert qa.ask(clip, QUESTION, 0.3, max_new_tokens=1).method == "attention"


def test_options_are_part_of_the_question(qa, lab):
    answer = qa.ask(lab.clip(1), "what ?", 0.5, options=["red", "green"], max_new_tokens=1)
    assert answer.question == "what ?\nA. red\nB. green"


def test_an_answer_is_printed_in_a_line(qa, lab):
    answer = qa.ask(lab.clip(1), QUESTION, np.float32(0.3), method="random", max_new_tokens=2)
    assert repr(answer).startswith(
        f"Answer(text={answer.text!r}, tokens={answer.tokens}, method='random', retention=0.3, "
        f"seconds: read "
    )
    assert len(repr(answer)) < 300 + len(answer.text)


def test_the_default_retention_is_that_of_the_command_line(qa, lab):
    from cacovid.commands.asking import share_to_keep

    answer = qa.ask(lab.clip(1), QUESTION, max_new_tokens=1)
    assert answer.retention == share_to_keep(qa, None, None) == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "device is 'gpu'; expected cpu"),
        ({"device": "cuda:99"}, "device is 'cuda:99'.*expected"),
        ({"device": "cpu", "dtype": "float99"}, "dtype is 'float99'; expected float32"),
        ({"device": "cpu", "dtype": torch.int8}, r"dtype is torch\.int8; expected float32"),
        ({"device": "cpu", "dtype": "nn"}, "dtype is 'nn'; expected float32"),
    ],
)
def test_devices_and_dtypes_that_cannot_be_are_refused(folder, settings, message):
    with pytest.raises(InvalidInputError, match=message):
        VideoQA.from_pretrained(folder, **settings)


@pytest.mark.parametrize("dtype", ["float64", "torch.float64", torch.float64])
def test_a_dtype_by_its_name(folder, dtype):
    assert VideoQA.from_pretrained(folder, device="cpu", dtype=dtype).model.dtype is torch.float64


def test_long_arrays_are_sampled_evenly(qa, lab):
    clip = lab.clip(2, 10)
    answer = qa.ask(torch.from_numpy(clip), QUESTION, 0.5, max_new_tokens=1)
    assert np.array_equal(answer.frames, clip[[0, 3, 6, 9]])
    assert answer.timestamps is None


def test_a_file(qa, video):
    answer = qa.ask(video, QUESTION, 0.25, max_new_tokens=2)
    assert answer.frames.shape == (4, 48, 64, 3)
    assert np.all(np.diff(answer.timestamps) > 0)
    assert answer.tokens == {"video": 36, "kept": 9}
    with pytest.raises(VideoReadError, match="missing"):
        qa.ask(video.with_name("missing.mp4"), QUESTION)


@pytest.mark.parametrize("ending", ["png", "mp4"])
def test_overlay(qa, lab, tmp_path, ending):
    answer = qa.ask(lab.clip(1), QUESTION, 0.3, max_new_tokens=1)
    path = answer.overlay(tmp_path / f"out.{ending}")
    assert path.stat().st_size > 500


def test_an_overlay_tells_the_average_over_the_layers(qa, lab, tmp_path, monkeypatch):
    import cacovid.viz.overlay as module

    seen = []
    monkeypatch.setattr(module, "write_overlay", lambda *_, caption, **__: seen.append(caption))
    answer = qa.ask(lab.clip(1), QUESTION, 0.5, method="fastv:1", max_new_tokens=1)
    answer.overlay(tmp_path / "out.png")
    video, kept = answer.tokens["video"], answer.tokens["kept"]
    average = answer.tokens["layer_average"]
    assert kept != average and seen[0][2] == (
        f"method fastv:1, retention 0.5: {average:,} of {video:,} tokens "
        f"({100 * average / video:.1f}%) averaged over the layers, {kept:,} in the last"
    )
    qa.ask(lab.clip(1), QUESTION, 0.5, method="uniform", max_new_tokens=1).overlay("out.png")
    assert seen[1][2] == "method uniform, retention 0.5"


def test_logits_that_are_no_numbers_are_no_answer(folder, lab):
    broken = VideoQA.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(InvalidInputError, match="logits for this question are NaN"):
        broken.ask(lab.clip(1, 4), QUESTION)


def test_wrong_questions(qa, lab):
    clip = lab.clip(1)
    for arguments, message in (
        ({"question": "  "}, "question is empty"),
        ({"question": "what ?", "retention": 0.0}, "retention is 0.0"),
        ({"question": "what ?", "method": "nothing"}, "unknown method"),
        ({"question": "what ?", "options": ["x"] * 27}, "27 options"),
        ({"question": "what ?", "options": ["x"]}, "1 options"),
        ({"question": "what ?", "options": "ABC"}, "the text 'ABC'; expected a list"),
        ({"question": "what ?", "options": ["", ""]}, "2 to 26 different texts"),
        ({"question": "what ?", "options": ["red", " "]}, "none of them empty"),
        ({"question": "what ?", "options": ["red", "red "]}, "different texts"),
        ({"question": "what ?", "options": [1, 2]}, r"options is \[1, 2\]; expected"),
        ({"question": "what ?", "retention": "a"}, "retention is 'a'; expected a number"),
        ({"question": "what ?", "retention": [0.1, 0.2]}, "2 values for 1 videos"),
        ({"question": None}, "the question is None; expected a text"),
        ({"question": ["what ?"]}, r"the question is \['what \?'\]; expected a text"),
        ({"question": "what <|im_end|> is ?"}, r"holds '<\|im_end\|>', .* special token"),
        ({"question": "what <video> is ?"}, "holds '<video>', .* special token"),
        ({"question": "what ?", "options": ["red", "<image>"]}, "holds '<image>'"),
        ({"question": "what ?", "method": methods.DivPruneMethod}, "DivPruneMethod is a class"),
        ({"question": "what ?", "method": ""}, "an empty name; expected one of attention"),
        ({"question": "what ?", "method": __file__}, "is a file; expected a policy's directory"),
        ({"question": "what ?", "method": lambda p: p.embeds[:, 0]}, "returned a Tensor; expected"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            qa.ask(clip, **arguments)
    for wrong in (clip[0], clip.astype(np.float32), clip[:0], clip[:, :0], clip[:, :, :0]):
        with pytest.raises(InvalidInputError, match="expected uint8 frames"):
            qa.ask(wrong, "what ?")
    for wrong, kind in ((None, "NoneType"), ([clip[0]], "list"), (b"clip.mp4", "bytes")):
        with pytest.raises(InvalidInputError, match=f"the video is of type {kind}; expected the"):
            qa.ask(wrong, "what ?")
    with pytest.raises(InvalidInputError, match="processor is None, which has no tokenizer"):
        VideoQA(qa.model, None)
    talk = qa.conversation(clip)
    talk.ask("what ?", max_new_tokens=1)
    with pytest.raises(InvalidInputError, match=r"holds '<video>', .* special token"):
        talk.ask("what <video> is ?")
    assert qa.ask(clip, "unknownword <unk> ?", max_new_tokens=1).tokens["kept"]


def test_a_policy_beside_the_model_is_used(folder, tmp_path, lab):
    import shutil

    config = CrossAttentionConfig(hidden_size=32)
    shutil.copytree(folder, tmp_path / "model")
    for name in ("policy", "policy-other"):
        CrossAttentionPolicy(config).save_pretrained(tmp_path / "model" / name)
    qa = VideoQA.from_pretrained(tmp_path / "model", device="cpu")
    answer = qa.ask(lab.clip(1), QUESTION, 0.3, max_new_tokens=1)
    assert answer.method == "cacovid"
    assert answer.scores.frame is not None
    assert sum(answer.selection.counts) == 8
    other = qa.ask(lab.clip(1), QUESTION, 0.3, method="cacovid:other", max_new_tokens=1)
    assert other.method == "cacovid:other"
    assert not other.scores.token.equal(answer.scores.token)
    with pytest.raises(InvalidInputError, match=r"no policy 'cacovid:none'.*cacovid:other"):
        qa.ask(lab.clip(1), QUESTION, 0.3, method="cacovid:none")


def test_a_second_question_on_a_video_is_not_scored_again(folder, tmp_path, lab, video):
    import shutil

    shutil.copytree(folder, tmp_path / "model")
    config = SurpriseConfig(hidden_size=32)
    SurprisePolicy(config).save_pretrained(tmp_path / "model" / "policy-score")
    qa = VideoQA.from_pretrained(tmp_path / "model", device="cpu")
    policy = qa._chooser("score").policy
    calls = []
    policy.register_forward_hook(lambda *_: calls.append(1))

    def ask(clip, question=QUESTION, **named):
        named = {"method": "score", "max_new_tokens": 1} | named
        return qa.ask(clip, question, named.pop("retention", 0.3), **named)

    clip = lab.clip(1, 4)
    first = ask(clip)
    second = ask(clip.copy(), "which shape is moving ?", retention=0.5)
    assert first.method == "score" and len(calls) == 1
    assert torch.equal(first.scores.token, second.scores.token) and first.scores.frame is None
    assert sum(second.selection.counts) == 18
    assert set(first.selection.keep.tolist()) < set(second.selection.keep.tolist())
    ask(lab.clip(2, 4))
    assert len(calls) == 2  # another video
    ask(video)
    ask(video, "which shape is moving ?")
    assert len(calls) == 3  # a file
    with torch.no_grad():
        policy.last.weight.mul_(-1.0)
    assert not torch.equal(ask(clip).scores.token, first.scores.token) and len(calls) == 4
    with pytest.raises(InvalidInputError, match=r"no .*policy-score; train one"):
        VideoQA.from_pretrained(folder, device="cpu").ask(clip, QUESTION, method="score")


def test_reading_defaults(tmp_path):
    from cacovid.models.defaults import ReadingDefaults, reading_defaults

    assert reading_defaults(str(tmp_path)) == ReadingDefaults(32, 1.0)
    (tmp_path / "cacovid.json").write_text('{"closing": false}')
    assert reading_defaults(str(tmp_path)) == ReadingDefaults(32, 1.0, closing=False)
    for text in ("{", '{"max_frames": 0}', '{"fps": "many"}', "[1]", '{"closing": "no"}'):
        (tmp_path / "cacovid.json").write_text(text)
        with pytest.raises(InvalidInputError, match=r"cacovid\.json cannot be used"):
            reading_defaults(str(tmp_path))


def test_models_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UnsupportedModelError, match="'qwen2', which has no adapter"):
        VideoQA.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    for name, told in ((tmp_path, "cannot be loaded: .*expected"), (__file__, "is a file")):
        with pytest.raises(InvalidInputError, match=f"model .* {told}"):
            VideoQA.from_pretrained(name)
    monkeypatch.setattr(model_defaults, "TINY_FOLDER", tmp_path / "none")
    with pytest.raises(InvalidInputError, match="embedded model is not in this installation"):
        VideoQA.from_pretrained("tiny")


def test_tokenizer_beside_the_weights(folder, lab, processor):
    """What a model was stored with finds the question without being named."""
    from transformers import LlavaOnevisionForConditionalGeneration

    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None
    inputs = lab.ask(processor, [QUESTION], [lab.clip(1)])
    named = prune_inputs(model, inputs, "attention:1:question", 0.3, tokenizer=processor.tokenizer)
    found = prune_inputs(model, inputs, "attention:1:question", 0.3)
    assert torch.equal(named.scores.token, found.scores.token)
