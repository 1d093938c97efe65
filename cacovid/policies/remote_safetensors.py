"""Single tensors out of safetensors files, on disk or on the Hub, without reading the others.

The format: eight bytes that say how long the header is, the header in JSON with each tensor's
dtype, shape and place, then the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError

#: dtypes of the format that a policy may be stored in.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

#: A header longer than this is no header.
_LONGEST_HEADER = 100_000_000


class CheckpointFiles:
    """Files of a checkpoint: a directory's, or a Hub repository's.

    Args:
        name: Directory or Hub id.
        revision: Branch, tag or commit on the Hub; None: the main branch.
        token: As for `huggingface_hub`.

    Raises:
        InvalidInputError: for the name of a file.

    Attributes:
        bytes_read: Bytes of safetensors files read so far.
    """

    def __init__(self, name: str, revision: str | None = None, token: Any = None) -> None:
        if Path(name).is_file():
            raise InvalidInputError(
                f"{str(name)!r} is a file; expected a checkpoint's directory or Hub id"
            )
        self.name = name
        self.revision = revision
        self.token = token
        self.bytes_read = 0

    def read_json(self, file: str) -> Any:
        """A JSON file's content, or None if there is no such file.

        Raises:
            InvalidInputError: if it is no JSON, or neither directory nor repository is there.
        """
        path = Path(self.name) / file
        if not Path(self.name).is_dir():
            found = self._download(file)
            if found is None:
                return None
            path = found
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{file} of {self.name!r} is not JSON: {error}") from error

    def read_tensors(self, file: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Some of a safetensors file's tensors, on the CPU; only their bytes are read.

        Raises:
            InvalidInputError: if the file is damaged, lacks a tensor, or holds it in another dtype
                than float64, float32, float16 or bfloat16.
        """
        header, begin = self._header(file)
        return {name: self._tensor(file, name, header.get(name), begin) for name in names}

    def names(self, file: str) -> list[str]:
        """The tensors of a safetensors file."""
        return [name for name in self._header(file)[0] if name != "__metadata__"]

    def _header(self, file: str) -> tuple[dict[str, Any], int]:
        """What the file says of its tensors, and where their bytes begin."""
        length = int.from_bytes(self._read(file, 0, 8), "little")
        if not 0 < length <= _LONGEST_HEADER:
            raise InvalidInputError(f"{file} of {self.name!r} is no safetensors file")
        try:
            header = json.loads(self._read(file, 8, 8 + length))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InvalidInputError(
                f"{file} of {self.name!r} is no safetensors file: {error}"
            ) from error
        return header, 8 + length

    def _tensor(self, file: str, name: str, entry: Any, begin: int) -> Tensor:
        if entry is None:
            raise InvalidInputError(f"{file} of {self.name!r} has no {name}, which its index names")
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise InvalidInputError(
                f"{name} of {self.name!r} is stored as {entry['dtype']}; expected one of "
                f"{', '.join(_DTYPES)}"
            )
        first, last = entry["data_offsets"]
        if last - first != math.prod(entry["shape"]) * dtype.itemsize:
            raise InvalidInputError(
                f"{name} in {file} of {self.name!r} is not as long as its shape"
            )
        raw = self._read(file, begin + first, begin + last)
        return torch.frombuffer(bytearray(raw), dtype=dtype).view(entry["shape"])

    def _read(self, file: str, begin: int, end: int) -> bytes:
        if Path(self.name).is_dir():
            try:
                with open(Path(self.name) / file, "rb") as stream:
                    stream.seek(begin)
                    data = stream.read(end - begin)
            except OSError as error:
                raise InvalidInputError(
                    f"{file} of {self.name!r} cannot be read: {error}"
                ) from error
        else:
            data = self._fetch(file, begin, end)
        self.bytes_read += len(data)
        if len(data) != end - begin:
            raise InvalidInputError(
                f"{file} of {self.name!r} ends at byte {begin + len(data)}, where {end} were "
                f"expected; download it again"
            )
        return data

    def _fetch(self, file: str, begin: int, end: int) -> bytes:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = hf_hub_url(self.name, file, revision=self.revision)
        headers = {**build_hf_headers(token=self.token), "range": f"bytes={begin}-{end - 1}"}
        try:
            response = get_session().get(url, headers=headers)
            hf_raise_for_status(response)
        except Exception as error:  # the client's errors differ between its releases
            raise InvalidInputError(
                f"{file} of {self.name!r} could not be had from the Hub: {error}"
            ) from error
        # A server that knows no ranges sends the whole file.
        return response.content if response.status_code == 206 else response.content[begin:end]

    def _download(self, file: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(
                hf_hub_download(self.name, file, revision=self.revision, token=self.token)
            )
        except EntryNotFoundError:
            return None
        except Exception as error:  # no such name, no network, no right to read
            raise InvalidInputError(
                f"there is no directory {self.name!r}, and {file} could not be had from the Hub: "
                f"{error}"
            ) from error
