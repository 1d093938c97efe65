"""Results on disk as they come, so that a stopped run goes on and several processes share one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cacovid.errors import InvalidInputError
from cacovid.evaluation.answers import Reply
from cacovid.evaluation.compare import Result
from cacovid.files import write_text
from cacovid.train.provenance import as_json, differences

HEADER, RECORDS = "run.json", "records-*.jsonl"


class Records:
    """The results of one run in a folder: `run.json`, and one `records-RANK.jsonl` per process.

    Args:
        folder: Made if it is not there.
        header: What the results depend on; a folder with another one is refused.
        rank: Of this process.

    Raises:
        InvalidInputError: if the folder holds another run, or files that are no records.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], rank: int = 0) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._own = folder / f"records-{rank}.jsonl"
        header = as_json(header)
        path = folder / HEADER
        if path.exists():
            _check_same(path, header)
        elif any(folder.glob(RECORDS)):
            raise InvalidInputError(f"{folder} holds records without {HEADER}; name another folder")
        else:
            write_text(path, json.dumps(header, indent=1) + "\n")

    def read(self) -> dict[str, Result]:
        """All results so far, of all processes, by id. A line that a kill cut off is no result.

        Raises:
            InvalidInputError: for a damaged line.
        """
        found: dict[str, Result] = {}
        for path in sorted(self.folder.glob(RECORDS)):
            # Answers hold what Unicode calls line ends, too; JSON writes a line feed as an escape.
            *whole, _cut_off = path.read_bytes().split(b"\n")
            for number, line in enumerate(whole, 1):
                try:
                    result = _from_json(json.loads(line))
                except (ValueError, TypeError, KeyError) as error:
                    raise InvalidInputError(
                        f"{path}, line {number} is no record ({error}); take the line out"
                    ) from error
                found.setdefault(result.id, result)
        return found

    def mend(self) -> None:
        """Takes a cut-off last line away from this process's file, before anything is appended."""
        if self._own.exists():
            whole = self._own.read_bytes().rpartition(b"\n")[:2]
            os.truncate(self._own, sum(map(len, whole)))

    def add(self, result: Result) -> None:
        """Appends a result, and hands it to the system."""
        with open(self._own, "a", encoding="utf-8") as file:
            file.write(json.dumps(_to_json(result), ensure_ascii=False) + "\n")


def _check_same(path: Path, header: Mapping[str, Any]) -> None:
    try:
        there = json.loads(path.read_text())
    except ValueError as error:
        raise InvalidInputError(f"{path} is no JSON ({error}); name another folder") from error
    if told := differences(there, header):
        raise InvalidInputError(
            f"{path.parent} holds the results of another run ({told}). Name another folder, or "
            f"ask for the same again to go on"
        )


def _to_json(result: Result) -> dict[str, Any]:
    out: dict[str, Any] = {"id": result.id, "kind": result.kind, "video": result.video}
    if result.unreadable:
        return {**out, "unreadable": result.unreadable}
    for name in ("answer", "mark", "tokens", "entering"):
        out[name] = [asdict(reply)[name] for reply in result.replies]
    if result.seconds:
        out["seconds"] = list(result.seconds)
    return out


def _from_json(line: dict[str, Any]) -> Result:
    common = (str(line["id"]), str(line["kind"]), str(line["video"]))
    if "unreadable" in line:
        return Result(*common, unreadable=str(line["unreadable"]))
    columns = zip(line["answer"], line["mark"], line["tokens"], line["entering"], strict=True)
    replies = tuple(Reply(str(a), float(m), int(t), int(e)) for a, m, t, e in columns)
    return Result(*common, replies=replies, seconds=tuple(line.get("seconds", ())))
