"""Whether speed was bought with quality: two adapters of the same data, examined on the same held-out pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from assistant.loading import Base, load_tokenizer, load_trainable
from assistant.settings import NightSettings
from finetune.attention import short_rows
from finetune.batches import encode_examples, row_key
from finetune.evaluate import Preferences, rank_preferences
from finetune.examples import Example
from finetune.intervals import clustered_error
from finetune.lora import attach_lora
from finetune.scoring import row_logps


@dataclass(frozen=True)
class Heldout:
    """Accuracies on held-out pairs, and their difference pair by pair, with 95 % intervals."""

    n: int
    ours: tuple[float, float, float]
    """Accuracy, low, high."""
    theirs: tuple[float, float, float]
    difference: tuple[float, float, float]


def compare(base: Base, night: NightSettings, pairs: Sequence[Example], ours: Path, theirs: Path) -> Heldout:
    """Examine both adapters on the trainable base, with one and the same arithmetic.

    Args:
        base: the frozen base.
        night: rank and alpha of both.
        pairs: that nobody trained on.
        ours: file of factors under PEFT's names.
        theirs: the same.
    """
    model = load_trainable(base)
    encoded, _ = encode_examples(load_tokenizer(base), pairs, night.max_tokens)
    rows = [row for pair in encoded for row in pair.rows]
    keys = [row_key(row) for row in rows]
    found: list[Preferences] = []
    head = model.get_output_embeddings()
    with short_rows(model), attach_lora(model, head, rank=night.rank, alpha=night.alpha, seed=0) as lora:
        bare = dict(zip(keys, row_logps(model, rows), strict=True))  # a fresh adapter changes nothing
        for file in (ours, theirs):
            lora.load(load_file(file))
            found.append(rank_preferences(encoded, dict(zip(keys, row_logps(model, rows), strict=True)), bare))
    return weigh(*found, clusters=[pair.cluster for pair in encoded])


def weigh(ours: Preferences, theirs: Preferences, clusters: Sequence[str]) -> Heldout:
    """Set two examinations on the same pairs beside each other."""
    differences = [a - b for a, b in zip(ours.outcomes, theirs.outcomes, strict=True)]
    mean = math.fsum(differences) / len(differences)
    reach = 1.96 * clustered_error(differences, clusters)
    return Heldout(
        n=ours.n,
        ours=(ours.accuracy, ours.low, ours.high),
        theirs=(theirs.accuracy, theirs.low, theirs.high),
        difference=(mean, mean - reach, mean + reach),
    )
