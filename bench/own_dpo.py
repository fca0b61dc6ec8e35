"""One training as a night does it, in a process of its own: python -m bench.own_dpo JOB.json OUT.json

The counterpart of rivals/trl_dpo.py: seconds from the loaded model to the trained adapter, with tokens and reference.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from assistant.loading import Base, load_tokenizer, load_trainable, resolve_base
from assistant.settings import NightSettings, Settings
from bench.pairs import example_of
from finetune.attention import short_rows
from finetune.examples import Example
from finetune.reference import LogpCache, reference_logps, reference_rows
from finetune.train import Trained, train_adapter
from finetune.workshop import encode_for_training, peak_gb, train_and_write


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train, write the adapter, and say how it went."""
    folder = Path(job["folder"])
    settings = Settings(
        home=folder,
        cache=folder / "cache",
        model=job["model"],
        threads=job["threads"],
        night=NightSettings(**job["night"]),
    )
    base = resolve_base(settings)
    tokenizer = load_tokenizer(base)
    started = time.perf_counter()
    examples = [example_of(**said) for said in job["examples"]]
    encode_for_training(tokenizer, examples, settings.night.max_tokens, settings.night.seed)
    encoding_s = time.perf_counter() - started
    if job["exact"]:
        return tell(train_exactly(base, settings, examples))
    made = train_and_write(base, settings, examples, settings.adapters_dir, "bench")
    return tell(made.trained, encoding_s + made.reference_seconds, str(made.adapter.folder))


def train_exactly(base: Base, settings: Settings, examples: list[Example]) -> Trained:
    """Train in float32 by the same loop, where rounding hides nothing."""
    model = load_trainable(base).float()
    night = settings.night
    encoded, _ = encode_for_training(load_tokenizer(base), examples, night.max_tokens, night.seed)
    rows = reference_rows(model, encoded)
    with short_rows(model):
        reference = reference_logps(model, rows, LogpCache(settings.cache_dir, base.id, "float32", "bench"))
        return train_adapter(model, encoded, reference, night)


def tell(trained: Trained, before_s: float = 0.0, adapter: str = "") -> dict[str, Any]:
    """Say how it went."""
    return {
        "seconds": before_s + trained.seconds,
        "peak_gb": peak_gb(),
        "losses": [step["loss"] for step in trained.history],
        "adapter": adapter,
    }


def main() -> None:
    """Read the job, train, write the answer."""
    job, answer = (Path(name) for name in sys.argv[1:])
    answer.write_text(json.dumps(train(json.loads(job.read_text(encoding="utf-8")))), encoding="utf-8")


if __name__ == "__main__":
    main()
