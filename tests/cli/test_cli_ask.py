"""`cacovid ask` on a real H.264 file with a real, untrained model."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from cacovid import methods
from cacovid.cli import main
from cacovid.commands.common import UsageError, check_method

QUESTION = "What colour is the striped ring?"
STAGES = ["read", "vision", "score+select", "prefill", "decode"]


def test_json_is_the_one_object_on_standard_output(cacovid, clip, model_dir, tmp_path):
    sheet = tmp_path / "sheet.png"
    done = cacovid(
        "ask", clip, QUESTION, "--model", model_dir, "--retention", "0.1", "--json",
        "--overlay", sheet, "--max-new-tokens", "5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert set(answer) == {"answer", "tokens", "seconds", "method", "retention"}
    assert answer["tokens"] == {"video": 576, "kept": 57}
    assert (answer["method"], answer["retention"]) == ("attention", 0.1)
    assert list(answer["seconds"]) == STAGES
    assert all(value >= 0 for value in answer["seconds"].values())
    assert isinstance(answer["answer"], str)
    # Progress goes to the other stream.
    assert "Reading the video" in done.stderr and "Writing the answer" in done.stderr
    with Image.open(sheet) as picture:
        assert picture.width > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_text_names_tokens_method_and_stages(cacovid, clip, model_dir, tmp_path):
    video = tmp_path / "out.mp4"
    done = cacovid(
        "ask", clip, QUESTION, "--model", model_dir, "--retention", "0.25", "--method", "uniform",
        "--options", "red", "blue", "green", "--overlay", video, "--max-new-tokens", "3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "576 -> 144 (25.0%)" in done.stdout
    assert "uniform, retention 0.25" in done.stdout
    assert all(stage in done.stdout for stage in STAGES)
    assert str(video) in done.stdout and video.stat().st_size > 1000


def ask_json(capsys, *arguments) -> dict:
    assert main(["ask", *map(str, arguments), "--json", "--max-new-tokens", "4"]) == 0
    return json.loads(capsys.readouterr().out)


def test_keeping_everything_gives_the_same_answer_for_every_method(capsys, clip, model_dir):
    answers = {
        ask_json(
            capsys, clip, QUESTION, "--model", model_dir, "--retention", "1", "--method", method
        )["answer"]
        for method in ("attention", "uniform", "random", "attention:0:question")
    }
    assert len(answers) == 1


def test_the_same_seed_gives_the_same_answer(capsys, clip, model_dir):
    arguments = (clip, QUESTION, "--model", model_dir, "--method", "random", "--seed", "3")
    first, second = (ask_json(capsys, *arguments) for _ in range(2))
    assert first["answer"] == second["answer"]
    assert first["tokens"] == {"video": 576, "kept": 57}


@pytest.mark.parametrize("value", ["0", "1.5", "-0.1", "nan"])
def test_a_retention_outside_its_range_is_wrong_usage(capsys, clip, value):
    assert main(["ask", str(clip), QUESTION, "--retention", value]) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and "--retention" in seen.err and "at most 1" in seen.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "nosuch"], "known: attention, "),
        (["--method", "attention:x"], "attention:2:question"),
        (["--method", "random", "--policy", "somewhere"], "give one"),
        (["--overlay", "out.gif"], ".png"),
        (["--overlay", "no/such/folder/out.png"], "no folder"),
        (["--max-new-tokens", "0"], "at least 1"),
        (["--options", "one"], "2 to 26 different"),
        (["--options", "a", "a"], "2 to 26 different"),
        (["--method", ""], "a method was asked for by ''; expected a name: attention"),
        (["--method", __file__], "is a file; expected a policy's directory"),
        (["--policy", __file__], "is a file; expected one with config.json"),
        (["--method", "no/such/policy"], "no directory 'no/such/policy'"),
        (["--retention", "abc"], "'abc' is no number"),
        (["--backend", "fast"], "reference"),
    ],
)
def test_values_that_cannot_be_are_wrong_usage(capsys, clip, arguments, message):
    assert main(["ask", str(clip), QUESTION, *arguments]) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and message in seen.err


def test_an_empty_question_is_wrong_usage(capsys, clip):
    assert main(["ask", str(clip), "  "]) == 2
    assert "empty" in capsys.readouterr().err


def test_a_missing_file_is_told_before_a_model_is_loaded(cacovid, tmp_path):
    done = cacovid("ask", tmp_path / "nosuch.mp4", QUESTION, "--json")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "nosuch.mp4" in done.stderr and "no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_video_is_told_without_a_traceback(cacovid, model_dir, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("this is no video\n" * 100)
    done = cacovid("ask", text, QUESTION, "--model", model_dir)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "text.mp4" in done.stderr and "Traceback" not in done.stderr


def test_debug_shows_the_traceback(capsys, tmp_path):
    assert main(["ask", str(tmp_path / "nosuch.mp4"), QUESTION, "--debug"]) == 1
    seen = capsys.readouterr()
    assert "Traceback" in seen.err and "VideoReadError" in seen.err


@pytest.mark.parametrize("name", ["nosuchmodel", "nosuch/model", "no/such/model"])
def test_an_unknown_model_is_told_without_a_traceback(cacovid, clip, name):
    done = cacovid("ask", clip, QUESTION, "--model", name)
    assert done.returncode == 1
    assert done.stdout == ""
    assert name in done.stderr and "directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["nowhere", "cuda:99", "gpu", "meta", "mps"])
def test_an_unknown_device_is_wrong_usage(capsys, clip, model_dir, name):
    assert main(["ask", str(clip), QUESTION, "--model", str(model_dir), "--device", name]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error" in x]
    assert line.startswith(f"cacovid: error: --device is {name!r}")


@pytest.mark.parametrize("package", ["transformers", "accelerate", "jinja2"])
def test_a_package_that_models_need_is_named_with_what_installs_it(
    capsys, clip, model_dir, monkeypatch, package
):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["ask", str(clip), QUESTION, "--model", str(model_dir)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"need {package}" in last and "pip install 'cacovid[models]'" in last


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", QUESTION, "--overlay", "kept.png"],
        ["overlay", QUESTION, "kept.png"],
        ["report", QUESTION, "page.html"],
    ],
)
def test_pictures_without_pillow_are_refused_before_work(capsys, clip, monkeypatch, arguments):
    monkeypatch.setitem(sys.modules, "PIL", None)
    command, *others = arguments
    assert main([command, str(clip), *others]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "need Pillow" in line and "pip install pillow" in line


def test_a_model_without_adapter_is_told(capsys, clip, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert main(["ask", str(clip), QUESTION, "--model", str(tmp_path)]) == 1
    seen = capsys.readouterr()
    assert "gpt2" in seen.err and "llava_onevision" in seen.err and seen.out == ""


def test_usage_errors_are_no_errors_of_the_library():
    from cacovid.errors import CacovidError

    assert not issubclass(UsageError, CacovidError)


def test_the_overlay_never_replaces_the_video(capsys, clip):
    before = clip.read_bytes()
    assert main(["ask", str(clip), QUESTION, "--overlay", str(clip)]) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and "is the video itself" in seen.err
    assert clip.read_bytes() == before


def test_a_folder_is_no_video(capsys, tmp_path):
    assert main(["ask", str(tmp_path), QUESTION]) == 1
    seen = capsys.readouterr()
    # Told at once: no stage has begun.
    assert "is a directory" in seen.err and len(seen.err.splitlines()) == 1 and seen.out == ""


@pytest.mark.parametrize("policy", ["nowhere", "attention", "no/such/folder"])
def test_a_policy_that_is_not_there_is_told_as_a_policy(capsys, clip, policy):
    assert main(["ask", str(clip), QUESTION, "--policy", policy]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--policy" in line and policy in line and "config.json" in line


def test_an_answer_without_text_is_named(capsys, clip, model_dir, monkeypatch):
    from cacovid.models import video_qa

    monkeypatch.setattr(video_qa, "generate_timed", lambda *given: "")
    assert main(["ask", str(clip), QUESTION, "--model", str(model_dir)]) == 0
    assert capsys.readouterr().out.startswith("(the model said nothing)\n")


def test_the_overlay_names_question_answer_method_and_share(
    capsys, clip, model_dir, tmp_path, monkeypatch
):
    from cacovid.viz import overlay

    given = {}
    write = overlay.write_overlay

    def keep(path, *parts, **named):
        given.update(named)
        return write(path, *parts, **named)

    monkeypatch.setattr(overlay, "write_overlay", keep)
    answer = ask_json(
        capsys, clip, QUESTION, "--model", model_dir, "--retention", "0.25", "--method", "uniform",
        "--overlay", tmp_path / "out.png",
    )["answer"]  # fmt: skip
    assert given["caption"] == (QUESTION, answer, "method uniform, retention 0.25")
    assert len(given["timestamps"]) == 16


def test_every_method_of_the_register_is_taken():
    for name in methods.names():
        check_method(name)
    with pytest.raises(UsageError, match="fastv"):
        check_method("fastv:0")


@pytest.mark.filterwarnings("ignore:.*layer-averaged retention")
def test_a_method_inside_the_language_model_answers(capsys, clip, model_dir):
    arguments = (clip, QUESTION, "--model", model_dir, "--method", "fastv:1", "--retention", "0.5")
    answer = ask_json(capsys, *arguments)
    assert answer["method"] == "fastv:1"
    assert answer["tokens"]["video"] == 576 and 0 < answer["tokens"]["kept"] < 576


def test_the_average_over_the_layers_is_told(cacovid, clip, model_dir):
    arguments = ("ask", clip, QUESTION, "--model", model_dir, "--method", "fastv:1")
    arguments += ("--retention", "0.1", "--max-new-tokens", "2")
    done = cacovid(*arguments)
    assert done.returncode == 0, done.stderr
    tokens = json.loads(cacovid(*arguments, "--json").stdout)["tokens"]
    # Layer 0 alone runs on more than the tenth that is kept of it.
    assert tokens["layer_average"] > 2 * tokens["kept"]
    average = tokens["layer_average"]
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("tokens")]
    assert f"576 -> {average} ({100 * average / 576:.1f}%), averaged over the layers" in line
    (warning,) = [x for x in done.stderr.splitlines() if "layer-averaged" in x]
    assert warning.startswith("cacovid: warning: fastv") and "inside.py" not in done.stderr


def test_a_policy_is_called_as_it_was_given(capsys, clip, model_dir, tmp_path):
    from cacovid.policies import CrossAttentionConfig, CrossAttentionPolicy
    from cacovid.synthetic.tiny.model import TEXT_WIDTH

    config = CrossAttentionConfig(hidden_size=TEXT_WIDTH, slots=4, slot_width=16, head_size=8)
    folder = tmp_path / "runs" / "mini" / "policy"
    CrossAttentionPolicy(config).save_pretrained(folder)
    for option in ("--method", "--policy"):
        answer = ask_json(capsys, clip, QUESTION, "--model", model_dir, option, folder)
        assert answer["method"] == str(folder)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.org/a.mp4", "https://example.org/a.mp4 is a URL"),
        ("file:///tmp/a.mp4", "give the path alone, /tmp/a.mp4"),
    ],
)
def test_a_url_is_no_file(capsys, url, message):
    assert main(["ask", url, QUESTION]) == 1
    assert message in capsys.readouterr().err


def test_a_letter_is_told_with_its_option(capsys, clip, model_dir, monkeypatch):
    from cacovid.models import video_qa

    monkeypatch.setattr(video_qa, "generate_timed", lambda *given: "C.")
    arguments = (clip, QUESTION, "--model", model_dir, "--options", "red", "blue", "orange")
    assert main(["ask", *map(str, arguments)]) == 0
    assert capsys.readouterr().out.startswith("C. orange\n")
    assert ask_json(capsys, *arguments)["answer"] == "C."
