"""A short training run, in one of several processes: `python processes.py '{"folder": …}'`.

Started by `test_processes.py`, with or without `accelerate launch`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch


def main(given: dict[str, Any]) -> None:
    """Trains as `given` says and writes `rank-R.json` with what this process saw."""
    torch.set_num_threads(1)
    from cacovid import CrossAttentionConfig, CrossAttentionPolicy
    from cacovid.errors import VideoReadError
    from cacovid.models.processing import VideoProcessor
    from cacovid.models.video_settings import VideoSettings
    from cacovid.synthetic.tiny.model import build_model
    from cacovid.synthetic.tiny.tokenizer import build_tokenizer
    from cacovid.train.cpo import CPO, CPOSettings
    from cacovid.train.data import Samples, embedded_samples, read_sample_frames
    from cacovid.train.encoding import SampleEncoder
    from cacovid.train.replay import RatioSettings
    from cacovid.train.rewards import LocalReward, freeze
    from cacovid.train.rollouts import RolloutSettings
    from cacovid.train.settings import TrainerSettings
    from cacovid.train.sharding import shard_frozen
    from cacovid.train.trainer import Trainer

    samples = embedded_samples("train", 5, 2, 4)
    unreadable = [samples[samples.order(0, 0)[place]].id for place in given.get("unreadable", [])]

    if given.get("kind") == "correct":
        # A model that has learned nothing is never right, but some of its words are among these.
        words = " ".join(sorted(w for w in build_tokenizer().get_vocab() if w.isalpha())[::2])
        asked = [replace(s, problem_type="free-form", options=(), solution=words) for s in samples]
        samples = Samples(tuple(asked))

    def read(sample: Any) -> Any:
        if sample.id in unreadable:
            raise VideoReadError(f"{sample.id}: truncated")
        return read_sample_frames(sample)

    tokenizer = build_tokenizer()
    model = freeze(build_model(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    processor = VideoProcessor(tokenizer, VideoSettings(144, 144, num_image_tokens=144))
    kind = given.get("kind", "log_probability")
    # Few prompt tokens of one forward: how many forwards a sample takes differs.
    encoder = SampleEncoder(model, processor, read, cached_videos=0)
    reward = LocalReward(encoder, kind=kind, max_new_tokens=4, batch_tokens=1500)
    rollouts = RolloutSettings(token_rollouts=6, frame_rollouts=3)
    objective = CPO(reward, CPOSettings(rollouts, RatioSettings(base=0.1), updates=2))
    torch.manual_seed(0)
    policy = CrossAttentionPolicy(
        CrossAttentionConfig(hidden_size=192, slots=4, slot_width=16, head_size=8)
    )
    settings = TrainerSettings(
        steps=given.get("steps", 3), samples_per_step=given["each"], learning_rate=1e-3,
        checkpoint_every=1, log_every=1, max_unreadable=given.get("max_unreadable", 1.0),
    )  # fmt: skip
    warnings: list[str] = []
    sharded = shard_frozen(model, torch.device("cpu")) if given.get("shard") else None
    run = Trainer(
        policy, objective, samples, settings, Path(given["folder"]), lockstep=sharded,
        on_warning=warnings.append,
    )  # fmt: skip
    run.train(run.resume())
    run.catch_up()
    run.close()
    rank = run.process_index
    held = sum(
        (p.to_local() if hasattr(p, "to_local") else p).numel()
        for p in model.model.language_model.layers.parameters()
    )
    names = [name for name, _ in run.unreadable]
    skipped = [text for text in warnings if text.startswith("skipped")]
    facts = {"held": held, "unreadable": names, "skipped": skipped}
    if sharded is not None:
        facts["forwards"] = sharded.forwards
        facts["idle_forwards"] = sharded.idle_forwards
    (Path(given["folder"]) / f"rank-{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
