"""`cacovid train` and `cacovid filter`, run as users run them."""

import json

import pytest
import yaml

from cacovid.cli import main


@pytest.fixture
def config(tmp_path, model_dir):
    values = {
        "output": "out",
        "model": str(model_dir),
        "policy": {"settings": {"slots": 4, "slot_width": 16, "head_size": 8}},
        "data": {"scenes": 2, "per_scene": 3},
        "reward": {"free_text": "forced"},
        "cpo": {
            "updates": 2,
            "rollouts": {"token_rollouts": 4, "frame_rollouts": 2},
            "ratio": {"base": 0.1},
        },
        "training": {
            "steps": 3, "learning_rate": 1e-3, "checkpoint_every": 1, "log_every": 1,
            "evaluate_every": 3,
        },
        "evaluation": {"questions": 4},
    }

    def write(**changes):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**values, **changes}))
        return path

    return write


def test_train_prints_before_and_after(cacovid, config, tmp_path):
    done = cacovid("train", config())
    assert done.returncode == 0, done.stderr
    assert "greedy selection at 10%, 4 held-out questions: 0." in done.stdout
    assert "before" in done.stdout and "policy: out/policy" in done.stdout
    entries = [json.loads(x) for x in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    after = json.loads((tmp_path / "out" / "after.json").read_text())
    assert len(entries) == 3 and ["greedy" in entry for entry in entries] == [False, False, True]
    assert entries[2]["greedy"] == after["accuracy"]
    again = cacovid("train", config())
    assert again.returncode == 2 and "--resume" in again.stderr
    resumed = cacovid("train", config(), "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    facts = json.loads(resumed.stdout)
    assert facts["policy"] == "out/policy" and facts["after"]["questions"] == 4
    refused = cacovid("train", config(data={"scenes": 3, "per_scene": 3}), "--resume")
    assert refused.returncode == 1 and "data.scenes was 2 and is now 3" in refused.stderr
    use = cacovid("ask", "missing.mp4", "what?", "--policy", "out/policy")
    assert "missing.mp4" in use.stderr


def test_dry_run_writes_nothing(cacovid, config, tmp_path):
    done = cacovid("train", config(), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["samples"] == 6 and facts["video_tokens"] == 576
    assert facts["memory"]["total"] > facts["memory"]["model"] > 1e6
    assert not (tmp_path / "out").exists()


def test_wrong_configurations(cacovid, config, tmp_path):
    for changes, message in (
        ({"trianing": {}}, "'trianing' is not known (did you mean 'training'?)"),
        ({"training": {"steps": "many"}}, "training: steps is 'many'; expected int"),
        ({"training": {"steps": 0}}, "steps is 0; expected at least 1"),
        ({"reward": {"kind": "best"}}, "kind is 'best'; expected one of correct"),
        ({"policy": {"type": "linear"}}, "policy.type is 'linear'"),
        ({"policy": {"settings": {"depth": 3}}}, "policy.settings: 'depth' is not known"),
        ({"data": {"file": "absent.json"}}, "absent.json cannot be read"),
        ({"model": "nothing here"}, "there is no model 'nothing here'"),
        ({"model": "nosuch"}, "there is no model 'nosuch'"),
        ({"output": ""}, "output is ''; expected the name of a folder"),
        ({"output": "run.yaml/out"}, "'run.yaml' is a file"),
        ({"dtype": "float23"}, "dtype is 'float23'; expected a floating dtype"),
    ):
        done = cacovid("train", config(**changes))
        assert done.returncode == 1, done.stderr
        assert message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_train_on_files(cacovid, config, clip, tmp_path):
    rows = [
        {
            "problem_id": n, "problem": "What colour is the circle?", "solution":
            "<answer>A</answer>", "problem_type": "multiple choice", "data_type": "video",
            "path": clip.name, "options": ["A. red", "B. blue"],
        }
        for n in range(3)
    ]  # fmt: skip
    rows.append({"problem": "?", "solution": "A", "problem_type": "multiple choice",
                 "path": "gone.mp4", "options": ["A. x", "B. y"]})  # fmt: skip
    rows += [{**rows[0], "solution": "(D)"}, {**rows[0], "problem": "Which?", "solution": "blue"}]
    rows.append({**rows[0], "problem_id": "opposite", "solution": "B"})  # one of them is kept
    (tmp_path / "data.json").write_text(json.dumps(rows))
    data = {"file": "data.json", "video_root": str(clip.parent)}
    done = cacovid("train", config(data=data))
    assert done.returncode == 0, done.stderr
    assert "left out row 3: there is no video" in done.stderr
    assert "left out row 4: the solution '(D)' is beyond the 2 options" in done.stderr
    assert "row 5 has the id of another question; it is '0#2'" in done.stderr
    listed = json.loads((tmp_path / "out" / "left_out.json").read_text())
    assert sorted(listed["left_out"]) == ["row 3", "row 4"] and listed["renamed"] == {
        "row 5": "0#2"
    }
    kept = cacovid("filter", config(data=data), "kept.json", "--json")
    assert json.loads(kept.stdout)["skipped"] == 2, kept.stderr
    assert json.loads((tmp_path / "kept.json").read_text())["left_out"] == listed["left_out"]


def test_two_stages_of_score_and_a_run_taken_up_between_them(cacovid, config, tmp_path):
    import shutil

    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 48), (80 * number, 90, 40)).save(
            tmp_path / "pictures" / f"{number}.png"
        )
        (tmp_path / "pictures" / f"{number}.txt").write_text("a red star and a blue ring")
    stages = [
        {"steps": 1, "data": {"images": "pictures", "scenes": 2, "stills": 2}},
        {"steps": 2, "data": {"scenes": 1, "per_scene": 3}, "name": "videos"},
    ]
    path = config(
        policy={"type": "surprise", "settings": {"width": 16, "inner_width": 8}},
        data={}, stages=stages, objective="score", score={"rollouts": 3, "updates": 2},
        training={
            "learning_rate": 1e-3, "checkpoint_every": 1, "log_every": 1, "keep_checkpoints": 3,
        },
        evaluation={"questions": 2},
    )  # fmt: skip
    done = cacovid("train", path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    entries = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
    assert [entry["stage"] for entry in entries] == [1, 2, 2]
    policy = (out / "policy" / "model.safetensors").read_bytes()
    assert json.loads((out / "policy" / "config.json").read_text())["policy_type"] == "surprise"
    # As if it had been stopped at the boundary.
    for step in (2, 3):
        shutil.rmtree(out / "checkpoints" / f"step-{step:06d}")
    shutil.rmtree(out / "policy")
    resumed = cacovid("train", path, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (out / "policy" / "model.safetensors").read_bytes() == policy


def test_filter(cacovid, config, tmp_path):
    done = cacovid("filter", config(), "kept.json", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["kept"] + facts["dropped"] == 6
    assert not (tmp_path / "kept.json.part").exists()
    data = {"scenes": 2, "per_scene": 3, "kept": "kept.json"}
    dry = cacovid("train", config(data=data), "--dry-run", "--json")
    assert json.loads(dry.stdout)["samples"] == facts["kept"]


def test_filter_never_writes_over_what_it_reads(capsys, config, tmp_path):
    path = config()
    before = path.read_bytes()
    for output, message in ((path, "is read here"), (tmp_path, "is a folder")):
        assert main(["filter", str(path), str(output)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("cacovid: error: KEPT: ") and message in line
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("command", [["train"], ["filter"]])
def test_a_wrong_device_in_a_configuration_is_told(capsys, config, tmp_path, command):
    more = [str(tmp_path / "kept.json")] if command == ["filter"] else []
    assert main([*command, str(config(device="gpu")), *more]) == 2
    assert "device is 'gpu'; expected cpu" in capsys.readouterr().err
