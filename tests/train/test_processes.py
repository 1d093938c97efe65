"""Several processes: unreadable videos on one of them, and a frozen model in shards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cacovid.errors import InvalidInputError

HERE = Path(__file__).resolve().parent
LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    "--main_process_port", "0",
]  # fmt: skip
FSDP = ["--config_file", str(HERE.parents[1] / "bench" / "configs" / "accelerate-fsdp2.yaml")]


def start(folder: Path, launch: list[str], **given):
    """Runs `processes.py`."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    command = launch or [sys.executable]
    given = json.dumps({"folder": str(folder)} | given)
    return subprocess.run(
        [*command, str(HERE / "processes.py"), given],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def train(folder: Path, launch: list[str], **given):
    """Runs `processes.py`; returns its policy, its log and what each process saw."""
    import cacovid

    done = start(folder, launch, **given)
    assert done.returncode == 0, done.stderr[-4000:]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    return cacovid.load_policy(folder / "policy"), log, ranks


def check_same_learning(one, two):
    """The same gradients at first; later steps differ by what Adam makes of the last bits."""
    norms = [[entry["gradient_norm"] for entry in log] for _, log, _ in (one, two)]
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-6) and norms[0][0] > 0
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)
    for name, value in one[0].state_dict().items():
        torch.testing.assert_close(value, two[0].state_dict()[name], rtol=1e-2, atol=1e-3)


@pytest.mark.timeout(1200)
def test_a_process_without_a_readable_video_goes_along(tmp_path):
    one = train(tmp_path / "one", [], each=2, unreadable=[1, 2])
    two = train(tmp_path / "two", [*LAUNCH, "--multi_gpu"], each=1, unreadable=[1, 2])
    check_same_learning(one, two)
    # Each process could not read one of the videos, and knows of both; the first one tells of them.
    (alone,) = one[2]
    assert len(alone["unreadable"]) == len(alone["skipped"]) == 2
    assert [rank["unreadable"] for rank in two[2]] == [alone["unreadable"]] * 2
    assert [rank["skipped"] for rank in two[2]] == [alone["skipped"], []]
    assert [entry["unreadable"] for entry in two[1]] == [1.0, 2.0, 2.0]
    listed = json.loads((tmp_path / "two" / "unreadable.json").read_text())["unreadable"]
    assert list(listed) == alone["unreadable"]


@pytest.mark.timeout(600)
def test_unreadable_videos_of_all_processes_stop_the_run(tmp_path):
    """Four steps of two samples try all eight, of which each process saw four."""
    done = start(
        tmp_path / "run", [*LAUNCH, "--multi_gpu"], each=1, steps=12, unreadable=list(range(8)),
        max_unreadable=0.9,
    )  # fmt: skip
    assert done.returncode != 0
    assert "8 of 8 samples have unreadable videos, more than the share 0.9" in done.stderr
    listed = json.loads((tmp_path / "run" / "unreadable.json").read_text())["unreadable"]
    assert len(listed) == 8


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["log_probability"])
def test_a_sharded_frozen_model_teaches_the_same(tmp_path, kind):
    whole = train(tmp_path / "whole", [], each=2, kind=kind, unreadable=[1])
    sharded = train(
        tmp_path / "sharded", [*LAUNCH, *FSDP], each=1, kind=kind, unreadable=[1], shard=True
    )
    check_same_learning(whole, sharded)
    (all_weights,) = [rank["held"] for rank in whole[2]]
    assert [rank["held"] for rank in sharded[2]] == [all_weights // 2] * 2
    forwards = [rank["forwards"] for rank in sharded[2]]
    idle = [rank["idle_forwards"] for rank in sharded[2]]
    # Together they ran equally often; the one with the unreadable video had less to do.
    assert forwards[0] + idle[0] == forwards[1] + idle[1] and max(idle) > 0


def test_the_fsdp_configuration_is_what_accelerate_reads(monkeypatch):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env
    from torch.distributed.fsdp import CPUOffloadPolicy

    config = load_config_from_file(FSDP[1])
    assert config.distributed_type == "FSDP" and config.num_processes == 4
    # As the launcher does: the configuration becomes environment variables, and these a plugin.
    args = launch_command_parser().parse_args([*FSDP, "-m", "cacovid"])
    args, _, _ = _validate_launch_command(args)
    assert args.use_fsdp
    for name, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert not isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    assert not plugin.cpu_ram_efficient_loading


def test_what_cannot_be_sharded_is_told(monkeypatch, model):
    from cacovid.train.sharding import plain_launch, shard_frozen

    with pytest.raises(InvalidInputError, match=r"one process; start several: accelerate launch"):
        shard_frozen(model, torch.device("cpu"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(InvalidInputError, match=r"fsdp_version .* is 1; expected 2"):
        shard_frozen(model, torch.device("cpu"))
    with plain_launch():
        assert os.environ["ACCELERATE_USE_FSDP"] == "false"
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InvalidInputError, match="sharded by FSDP2: accelerate launch"):
        plain_launch()


def test_each_process_has_its_own_gpu(monkeypatch):
    from cacovid.train.run import training_device

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training_device(None) == "cuda" and training_device("cpu") == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert training_device(None) == training_device("cuda") == "cuda:3"
    assert training_device("cuda:1") == "cuda:1" and training_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_device(None) == "cpu"
