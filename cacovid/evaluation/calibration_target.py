"""Where a calibrated share of tokens is written: a policy's folder, or a run's configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cacovid.errors import InvalidInputError
from cacovid.files import write_text
from cacovid.policies.storage import CONFIG, load_policy
from cacovid.train.config import read_config
from cacovid.train.video_r1 import read_utf8

_SECTION = re.compile(r"^evaluation:[ \t]*(?:#.*)?$", re.MULTILINE)
_ENTRY = re.compile(r"^([ \t]+)(retention:)[ \t]*[^#\n]*?([ \t]*(?:#.*)?)$", re.MULTILINE)


def check_target(path: Path) -> None:
    """Refuses what no share could be written to, before anything is measured.

    Raises:
        InvalidInputError: if it is neither a policy's folder nor a training configuration, or a
            YAML file that cannot be changed without loss.
    """
    if path.is_dir():
        load_policy(path)
    elif path.is_file():
        text = read_utf8(path)
        read_config(path)
        if not _is_json(path) and _in_yaml(text, 1.0) is None:
            raise InvalidInputError(
                f"{path} is written in a way that cannot be changed without loss; give its "
                f"evaluation section lines of its own (evaluation:, and retention: below it), or "
                f"write the share there yourself"
            )
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
    text = read_utf8(path)
    if _is_json(path):
        values = json.loads(text)
        values.setdefault("evaluation", {})["retention"] = retention
        changed = json.dumps(values, indent=2) + "\n"
    else:
        mended = _in_yaml(text, retention)
        assert mended is not None  # as `check_target` has tried
        changed = mended
    write_text(path, changed)
    return path


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _in_yaml(text: str, retention: float) -> str | None:
    """The text with the share in its evaluation section; None where it cannot be changed so."""
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
    return changed if same and not (section is None and inline) else None
