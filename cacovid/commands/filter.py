"""`cacovid filter`: drop the questions that need no video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from cacovid.commands.common import (
    Command,
    UsageError,
    check_output,
    tell_left_out,
    write_json,
    write_line,
)
from cacovid.commands.progress import progress, steps_bar


@dataclass
class Filter(Command):
    """Drop the questions that the model answers rightly without the video: they teach nothing.

    Writes the list of kept ids, for `kept:` in the data section of a training configuration. A
    stopped run goes on where it was; marks of another model or other data are not gone on with.

    Example: cacovid filter bench/configs/tiny-cross-attention.yaml kept.json
    """

    config: Annotated[tyro.conf.Positional[Path], arg(metavar="CONFIG")]
    """Training configuration: its model and its data."""
    output: Annotated[tyro.conf.Positional[Path], arg(metavar="KEPT")]
    """The list to write (JSON)."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> None:
        """Filters, and prints how many questions are left."""
        import torch

        from cacovid.commands.loading import check_device, check_packages, quiet_libraries
        from cacovid.models.defaults import model_location, reading_defaults
        from cacovid.models.processing import load_processor
        from cacovid.models.storage import load_whole
        from cacovid.train.config import read_config
        from cacovid.train.filtering import BlindReader, filter_blind
        from cacovid.train.provenance import weights_of
        from cacovid.train.rewards import freeze
        from cacovid.train.run import check_answerable, read_data, reading_dtype
        from cacovid.train.wording import put_plainly

        config = read_config(self.config)
        if config.stages:
            raise UsageError(
                f"{self.config} has stages; filter the data of one at a time, from a configuration "
                f"with that data, and name the list as kept in the stage"
            )
        check_output(self.output, "KEPT", self.config, config.data.file)
        if config.device is not None:
            check_device(config.device, f"{self.config}: device")
        check_packages()
        if not self.debug:
            quiet_libraries()
        with progress(2) as shown:
            shown.stage("data")
            samples = read_data(config.data)
            tell_left_out(samples, f"all are listed in {self.output}")
            shown.stage("model")
            location = model_location(config.model)
            device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
            model = freeze(load_whole(location, reading_dtype(config.dtype, device)).to(device))
            processor = load_processor(location)
            check_answerable(samples, processor.tokenizer)
            if not reading_defaults(location).closing:
                samples = put_plainly(samples)
        reader = BlindReader(model, processor, config.reward.max_new_tokens)
        data = config.data
        header = {
            "model": location,
            "weights": weights_of([Path(location)]),
            "dtype": str(model.dtype),
            "max_new_tokens": config.reward.max_new_tokens,
            "data": data.file or data.images or f"embedded/{data.split}/{data.seed}",
        }
        with steps_bar("Reading without video", len(samples)) as bar:
            found = filter_blind(
                samples, reader, self.output, header, lambda done: bar.step(done, None)
            )
        if self.json:
            write_json(
                {
                    "kept": len(found.kept),
                    "dropped": len(found.dropped),
                    "skipped": len(samples.skipped),
                    "list": str(self.output),
                }
            )
            return
        write_line(f"kept {len(found.kept):,} of {len(samples):,} questions: {self.output}")
