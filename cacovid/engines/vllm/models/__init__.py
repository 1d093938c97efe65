"""The classes that vLLM makes: sub-classes of its own models and processors.

Importing this imports vLLM, so only vLLM does.

Raises:
    UnsupportedModelError: at the import, where the installed vLLM has changed underneath.
"""

from __future__ import annotations

from cacovid.engines.vllm.contract import check

check()
