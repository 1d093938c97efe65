"""`cacovid convert` on a generated checkpoint of the published layout, and the way to a Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cacovid import SelfAttentionConfig, SelfAttentionPolicy, load_policy
from cacovid.errors import InvalidInputError
from cacovid.policies.published import PREFIX, convert_checkpoint
from tests.policies.hub_stand_in import serve

ROOT = Path(__file__).resolve().parents[2]
CONFIG = SelfAttentionConfig(
    hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
    rope_theta=5000.0, rms_norm_eps=1e-5,
)  # fmt: skip
SETTINGS = {
    "model_type": "llava_qwen", "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "rope_theta": 5000.0, "rms_norm_eps": 1e-5,
}  # fmt: skip


def write_checkpoint(folder, *, settings=SETTINGS, prefix=PREFIX, change=None, index=True):
    """The published layout: the policy across two files, between a language model's tensors."""
    torch.manual_seed(3)
    own = SelfAttentionPolicy(CONFIG).to(torch.bfloat16).state_dict()
    own["mode_selection.0.weight"] = torch.randn(3, 32, dtype=torch.bfloat16)
    if change is not None:
        change(own)
    files = [{}, {}, {}]
    for number, (name, value) in enumerate(own.items()):
        files[number % 2][prefix + name] = value.contiguous()
    for number, file in enumerate(files):
        file[f"model.layers.{number}.mlp.up_proj.weight"] = torch.zeros(512, 512)
    folder.mkdir(exist_ok=True)
    names = {}
    if not index:
        files = [{k: v for file in files for k, v in file.items()}]
    for number, file in enumerate(files):
        name = f"model-{number + 1:05}-of-00003.safetensors" if index else "model.safetensors"
        save_file(file, folder / name)
        names.update(dict.fromkeys(file, name))
    if index:
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": names})
        (folder / "model.safetensors.index.json").write_text(text)
    (folder / "config.json").write_text(json.dumps(settings))
    return own


@pytest.mark.parametrize("index", [True, False], ids=["sharded", "one file"])
def test_policy_out_of_a_checkpoint(tmp_path, index):
    own = write_checkpoint(tmp_path / "published", index=index)
    done = convert_checkpoint(tmp_path / "published", tmp_path / "policy", base_model="a/b")
    policy = load_policy(tmp_path / "policy", "a/b")
    assert type(policy) is SelfAttentionPolicy
    assert done.left_out == ("mode_selection.0.weight",)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, own[name].float()), name
    assert {name: getattr(policy.config, name) for name in ("rope_theta", "rms_norm_eps")} == {
        "rope_theta": 5000.0, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    stored = load_file(tmp_path / "policy" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert done.tensors == len(stored) == len(own) - 1


def test_only_the_policys_bytes_are_read(tmp_path):
    own = write_checkpoint(tmp_path / "published")
    done = convert_checkpoint(tmp_path / "published", tmp_path / "policy")
    needed = sum(value.numel() * 2 for value in own.values())
    headers = 2 * 8192
    assert needed <= done.bytes_read <= needed + headers
    # The third file holds nothing of the policy and need not be there.
    (tmp_path / "published" / "model-00003-of-00003.safetensors").unlink()
    convert_checkpoint(tmp_path / "published", tmp_path / "again")


def test_settings_of_a_model_with_vision(tmp_path):
    text = {**SETTINGS, "rope_parameters": {"rope_theta": 77.0, "rope_type": "default"}}
    del text["rope_theta"]
    settings = {"hidden_size": 999, "text_config": text}
    write_checkpoint(tmp_path / "published", settings=settings, prefix=f"model.{PREFIX}")
    done = convert_checkpoint(tmp_path / "published", tmp_path / "policy")
    assert (done.policy.config.hidden_size, done.policy.config.rope_theta) == (32, 77.0)


def lose(name):
    return lambda own: own.pop(name)


def spoil(own):
    own["layernorm.weight"][3] = float("nan")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"prefix": "something."}, r"holds no tensors named compression_policy"),
        ({"change": lose("layers.0.self_attn.k_proj.bias")}, r"missing .*k_proj\.bias"),
        ({"change": lose("layernorm.weight")}, r"lacks compression_policy\.layernorm"),
        ({"change": spoil}, "NaN"),
        ({"settings": {"model_type": "x"}}, "says nothing of num_attention_heads"),
        ({"settings": {**SETTINGS, "rope_scaling": {"type": "yarn"}}}, "yarn"),
        ({"settings": {**SETTINGS, "num_key_value_heads": 4}}, r"k_proj.* is \(16"),
    ],
)  # fmt: skip
def test_checkpoints_that_do_not_fit(tmp_path, how, message):
    write_checkpoint(tmp_path / "published", **how)
    with pytest.raises(InvalidInputError, match=message):
        convert_checkpoint(tmp_path / "published", tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_damaged_files(tmp_path):
    write_checkpoint(tmp_path / "published")
    path = tmp_path / "published" / "model-00001-of-00003.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:6000], b"\0" * 100, b"\x08" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(InvalidInputError, match=r"model-00001-of-00003\.safetensors"):
            convert_checkpoint(tmp_path / "published", tmp_path / "policy")
    path.unlink()
    with pytest.raises(InvalidInputError, match="cannot be read"):
        convert_checkpoint(tmp_path / "published", tmp_path / "policy")
    with pytest.raises(InvalidInputError, match=r"model\.safetensors"):
        convert_checkpoint(tmp_path / "nothing" / ".." / "published" / "..", tmp_path / "policy")


def test_nothing_is_written_over(tmp_path):
    from cacovid.commands.common import UsageError
    from cacovid.commands.convert import Convert

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"holds a config\.json already"):
        Convert(source=str(tmp_path), output=tmp_path).run()
    with pytest.raises(UsageError, match="--policy-share is 2"):
        Convert(source=str(tmp_path), output=tmp_path / "new", policy_share=2).run()


def run(hub, folder, *arguments):
    """Python with this Hub as its Hub, and a cache of its own."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False,
        timeout=240, cwd=folder,
        env={
            **os.environ, "PYTHONPATH": path, "HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_none",
            "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


_ROUND_TRIP = """
import sys, torch, cacovid
policy = cacovid.load_policy(sys.argv[1])
address = policy.push_to_hub("owner/policy", private=True)
again = type(policy).from_pretrained("owner/policy")
same = all(torch.equal(v, again.state_dict()[k]) for k, v in policy.state_dict().items())
print(same, again.config == policy.config, address)
"""


def test_from_the_hub_and_to_the_hub(tmp_path):
    own = write_checkpoint(tmp_path / "published")
    with serve() as hub:
        hub.files["owner/published"] = {
            path.name: path.read_bytes() for path in (tmp_path / "published").iterdir()
        }
        facts = json.loads(
            run(hub, tmp_path, "-m", "cacovid", "convert", "owner/published", "policy", "--json")
        )
        assert facts["tensors"] == len(own) - 1 and facts["left_out"] == 1
        assert facts["bytes_read"] < sum(map(len, hub.files["owner/published"].values())) / 10
        # Ranges alone were fetched of the weights, and of the third file nothing.
        assert {name for name, _ in hub.ranges} == {
            "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
        }  # fmt: skip
        out = run(hub, tmp_path, "-c", _ROUND_TRIP, tmp_path / "policy")
        assert out.split()[:2] == ["True", "True"], out
        assert out.split()[2].startswith(f"{hub.address}/owner/policy")
        assert set(hub.files["owner/policy"]) >= {"config.json", "model.safetensors"}
