"""Where a calibrated share of tokens is written: a policy's folder, or a run's configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cacovid.errors import InvalidInputError
from cacovid.evaluation.records import write_text
from cacovid.policies.storage import CONFIG, load_policy
from cacovid.train.config import read_config

_SECTION = re.compile(r"^evaluation:[ \t]*(?:#.*)?$", re.MULTILINE)
_ENTRY = re.compile(r"^([ \t]+)(retention:)[ \t]*[^#\n]*?([ \t]*(?:#.*)?)$", re.MULTILINE)


def check_target(path: Path) -> None:
    """Refuses what no share could be written to, before anything is measured.

    Raises:
        InvalidInputError: if it is neither a policy's folder nor a training configuration.
    """
    if path.is_dir():
        load_policy(path)
    elif path.is_file():
        read_config(path)
    else:
        raise InvalidInputError(
            f"there is no {path}; expected a policy's folder, or a training configuration (YAML "
            f"or JSON)"
        )


def write_retention(path: Path, retention: float) -> Path:
    """Writes the share of tokens; the file is whole at all times.

    A policy's folder gets `retention` in its `config.json`, which `cacovid ask` and `VideoQA` go by
    where none is given; a training configuration gets `retention` in its `evaluation` section.
    Comments and order of a YAML file stay.

    Args:
        path: The folder or the file.
        retention: The share, in (0, 1].

    Returns:
        The file that was written.

    Raises:
        InvalidInputError: if it cannot be written without loss; nothing is changed then.
    """
    check_target(path)
    if path.is_dir():
        file = path / CONFIG
        values = json.loads(file.read_text())
        values["retention"] = retention
        write_text(file, json.dumps(values, indent=2) + "\n")
        return file
    text = path.read_text()
    if path.suffix.lower() == ".json":
        values = json.loads(text)
        values.setdefault("evaluation", {})["retention"] = retention
        write_text(path, json.dumps(values, indent=2) + "\n")
    else:
        write_text(path, _in_yaml(text, retention, path))
    return path


def _in_yaml(text: str, retention: float, path: Path) -> str:
    import yaml

    wanted: Any = yaml.safe_load(text) or {}
    inline = "evaluation" in wanted
    wanted["evaluation"] = {**(wanted.get("evaluation") or {}), "retention": retention}
    section = _SECTION.search(text)
    if section is None:
        changed = text.rstrip("\n") + f"\nevaluation:\n  retention: {retention}\n"
    else:
        after = section.end()
        end = re.compile(r"^[^\s#]", re.MULTILINE).search(text, after)
        block = text[after : end.start() if end else len(text)]
        entry = _ENTRY.search(block)
        if entry:
            line = f"{entry[1]}{entry[2]} {retention}{entry[3]}"
            mended = block[: entry.start()] + line + block[entry.end() :]
        else:
            first = re.search(r"^([ \t]+)[^\s#]", block, re.MULTILINE)
            mended = f"\n{first[1] if first else '  '}retention: {retention}" + block
        changed = text[:after] + mended + text[after + len(block) :]
    try:
        same = yaml.safe_load(changed) == wanted
    except yaml.YAMLError:
        same = False
    # A second section of the name would win without a word, and hide the first.
    if not same or (section is None and inline):
        raise InvalidInputError(
            f"{path} is written in a way that cannot be changed without loss; write retention: "
            f"{retention} into its evaluation section yourself"
        )
    return changed
