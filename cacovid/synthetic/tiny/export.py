"""Stores the trained model as an ordinary Hugging Face directory, in half precision."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from cacovid.synthetic import world


def export(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes weights (float16), configuration, tokenizer, processor and reading defaults.

    A policy's folder inside `folder` is kept. Everything is written beside it first.
    """
    from transformers import GenerationConfig

    from cacovid.models import use_published_names, write_processor

    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    stored = copy.deepcopy(model).to(torch.float16)
    stored.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    stored.save_pretrained(temporary)
    use_published_names(temporary)
    tokenizer.save_pretrained(temporary)
    write_processor(
        temporary, tokenizer, frame_size=world.FRAME_SIZE, tokens_per_side=2 * world.CELLS
    )
    (temporary / "cacovid.json").write_text(
        json.dumps({"max_frames": world.CLIP_FRAMES, "fps": world.CLIP_FPS, "closing": False})
        + "\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    for path in temporary.iterdir():
        path.chmod(0o644)  # safetensors writes files for their owner alone
        path.replace(folder / path.name)
    temporary.rmdir()
