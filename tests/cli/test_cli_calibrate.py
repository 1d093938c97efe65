"""`cacovid calibrate`, run as users run it."""

import json

import pytest


def test_chooses_and_writes(cacovid, model_dir, tmp_path):
    import cacovid as library

    config = library.CrossAttentionConfig(hidden_size=192, slots=4, slot_width=16, head_size=8)
    library.CrossAttentionPolicy(config).save_pretrained(tmp_path / "policy")
    # Of a model that has learned nothing, any time is met by all tokens on offer.
    done = cacovid(
        "calibrate", "--embedded", "--model", model_dir, "--first-token", "1000", "--timed", "1",
        "--retention", "0.05", "0.3", "--limit", "8", "--max-new-tokens", "4", "--write", "policy",
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["retention"] == 0.3 and facts["written"] == "policy/config.json"
    assert facts["method"] == "policy" and facts["data"] == "embedded/validation/0"
    assert [c["retention"] for c in facts["candidates"]] == [0.05, 0.3]
    stored = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert stored["retention"] == 0.3 and stored["hidden_size"] == 192


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--embedded",), "give --keep SHARE"),
        (("--embedded", "--keep", "2"), "keep is 2.0"),
        (("--keep", "0.9"), "either --embedded or --data"),
        (("--embedded", "--keep", "0.9", "--retention", "0.1", "0.1"), "one twice"),
    ],
)
def test_wrong_usage(cacovid, arguments, message):
    done = cacovid("calibrate", *arguments)
    assert done.returncode == 2 and message in done.stderr


def test_several_processes_are_told_to_be_one(cacovid):
    done = cacovid("calibrate", "--embedded", "--keep", "0.9", WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2 and "one of 2 processes; it runs as one" in done.stderr
    assert "without accelerate launch" in done.stderr


def test_a_target_that_is_none_is_told_before_anything_runs(cacovid):
    done = cacovid("calibrate", "--embedded", "--keep", "0.9", "--write", "none")
    assert done.returncode == 1 and "there is no none" in done.stderr
