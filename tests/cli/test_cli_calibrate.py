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


def test_what_was_measured_is_told_where_nothing_is_found(cacovid, model_dir, capsys):
    from cacovid.commands.calibrate import Calibrate
    from cacovid.evaluation.calibrate import Candidate, WishNotMetError

    done = cacovid(
        "calibrate", "--embedded", "--model", model_dir, "--first-token", "1e-9", "--timed", "1",
        "--retention", "0.05", "0.3", "--limit", "2", "--max-new-tokens", "4", "--method",
        "uniform", "--json",
    )  # fmt: skip
    assert done.returncode == 1 and "no share of tokens is fast enough" in done.stderr
    facts = json.loads(done.stdout)
    assert facts["retention"] is None and facts["written"] is None
    assert [(c["retention"], c["meets"]) for c in facts["candidates"]] == [
        (0.05, False), (0.3, False),
    ]  # fmt: skip
    missed = WishNotMetError("missed", 0.0, [Candidate(0.05, 0.0, None, 0.0, 0.25, False)])
    Calibrate(embedded=True)._report(missed, None, "uniform", 2, None)
    told = capsys.readouterr().out
    assert "250.0" in told and "uncompressed 0.0" in told and "retention:" not in told


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


def test_too_few_videos_are_told_before_anything_runs(cacovid, model_dir, tmp_path):
    done = cacovid(
        "calibrate", "--embedded", "--model", model_dir, "--keep", "0.5", "--limit", "2",
        "--method", "uniform", "--json",
    )  # fmt: skip
    assert done.returncode == 1 and not done.stdout
    assert "on 2 videos, too few" in done.stderr and "expected at least 10" in done.stderr
    assert "Answering" not in done.stderr


def test_several_processes_are_told_to_be_one(cacovid):
    done = cacovid("calibrate", "--embedded", "--keep", "0.9", WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2 and "one of 2 processes; it runs as one" in done.stderr
    assert "without accelerate launch" in done.stderr


def test_a_target_that_is_none_is_told_before_anything_runs(cacovid):
    done = cacovid("calibrate", "--embedded", "--keep", "0.9", "--write", "none")
    assert done.returncode == 1 and "there is no none" in done.stderr
