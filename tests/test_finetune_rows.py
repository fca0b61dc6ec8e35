"""Completions that share their prompt's row: the same numbers as in rows of their own, in less room."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, GPTJConfig, LlamaConfig, PretrainedConfig

from assistant.settings import NightSettings
from finetune import train
from finetune.attention import short_rows
from finetune.batches import (
    ALONE,
    COLUMNS,
    Encoded,
    Row,
    Sharing,
    make_batch,
    micro_batches,
    row_key,
    share_rows,
    single_rows,
)
from finetune.kto import prepare_thumbs
from finetune.lora import attach_lora
from finetune.scoring import _batched_completion_logps, batch_token_logps, how_to_share, row_logps, token_bytes
from tests.finetune_support import encoded, encoded_rankings, encoded_thumbs
from tests.tiny import tiny_model

NIGHT = NightSettings(rank=4, alpha=8)
MODEL = tiny_model()
WIDE = Sharing(1024, 1024)


def test_rows_that_run_together_have_the_values_of_rows_alone() -> None:
    rows = [row for e in encoded(4) for row in e.rows] * 2
    together = [logps[0] for logps in _batched_completion_logps(MODEL, rows, 100)]
    assert together == pytest.approx(row_logps(MODEL, rows), abs=1e-4)


def test_completions_share_a_row_up_to_its_length_and_within_reach() -> None:
    rows: list[Row] = [((1, 2), (n, n)) for n in range(3, 8)] + [((9,), (3,)), ((1, 2), (8,) * 9)]
    shared = share_rows(rows, Sharing(tokens=8, reach=8))
    assert shared[0] == ((1, 2), (3, 3), (4, 4), (5, 5)) and ((1, 2), (8,) * 9) in shared
    assert all(sum(map(len, row)) <= 8 for row in shared if len(row) > 2)
    assert sorted(single_rows(shared)) == sorted(rows) and len(shared) == 4
    assert share_rows(rows, ALONE) == rows


@pytest.mark.parametrize("config", [BloomConfig, GPTJConfig, LlamaConfig])
def test_what_a_token_keeps_is_known_for_any_decoder(config: type[PretrainedConfig]) -> None:
    small = {"hidden_size": 32, "n_embd": 32, "num_hidden_layers": 2, "n_layer": 2, "vocab_size": 99, "n_head": 4}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 64, "rotary_dim": 4}
    model = AutoModelForCausalLM.from_config(config(**small))
    kept = (16 * 32 + 5 * 64) * 2 * 4
    assert token_bytes(model) == kept + (0 if config is LlamaConfig else 20 * 99)


def thumbs() -> list[Encoded]:
    return prepare_thumbs(encoded_thumbs(4), 64, 0)[0]


MIXTURES = {
    "pairs": encoded(4),
    "rankings of three": encoded_rankings(3, 3),
    "rankings of nine": encoded_rankings(2, 9),
    "all": [*encoded(3), *encoded(2, seed=1, pairs=False), *encoded_rankings(2, 4, seed=2), *thumbs()],
}


def step(examples: Sequence[Encoded], sharing: Sharing, patch: pytest.MonkeyPatch) -> tuple[float, torch.Tensor]:
    """The loss and the whole gradient of one step away from the reference."""
    patch.setattr(train, "how_to_share", lambda model: sharing)
    reference = {row_key(row): row_logps(MODEL, [row])[0] for e in examples for row in [*e.rows, *e.mismatch]}
    with attach_lora(MODEL, MODEL.lm_head, rank=4, alpha=8, seed=3) as lora:
        generator = torch.Generator().manual_seed(0)
        for layer in lora.layers.values():
            layer.b.data.normal_(std=0.05, generator=generator)
        sums = train.accumulate_gradients(MODEL, examples, reference, NIGHT)
        return sums.loss, torch.cat([p.grad.flatten() for p in lora.parameters if p.grad is not None])


@pytest.mark.parametrize("kinds", MIXTURES)
@pytest.mark.parametrize("attention", ["sdpa", "short"])
def test_loss_and_gradient_are_those_of_separate_rows(
    kinds: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attention == "short":
        with short_rows(MODEL):
            found, gradient = step(MIXTURES[kinds], WIDE, monkeypatch)
    else:
        found, gradient = step(MIXTURES[kinds], WIDE, monkeypatch)
    expected, separate = step(MIXTURES[kinds], ALONE, monkeypatch)
    assert found == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(gradient, separate, atol=1e-5) and gradient.abs().max() > 1e-3


def test_every_completion_has_the_log_probability_it_has_alone() -> None:
    """Prompts and completions of all lengths beside each other, so that there is padding of every kind."""
    examples = MIXTURES["all"]
    batch = make_batch([row for e in examples for row in e.packed(WIDE)])
    logps = batch_token_logps(MODEL, batch).detach()
    rows = [row for e in examples for row in e.rows]
    together = torch.zeros(len(rows)).index_add(0, batch.completion, logps)
    assert together.tolist() == pytest.approx(row_logps(MODEL, rows), abs=1e-4)


def test_a_shared_row_by_hand() -> None:
    batch = make_batch([((5, 6), (7, 8, 9), (10,)), ((1,), (2, 3))])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, *[0] * (COLUMNS - 6)], [1, 2, 3, *[0] * (COLUMNS - 3)]]
    assert batch.positions is not None and batch.mask is not None
    assert batch.positions[0, :6].tolist() == [0, 1, 2, 3, 4, 2]
    assert batch.positions[1, :3].tolist() == [0, 1, 2]
    assert batch.mask[0, 0, :6, :6].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    assert batch.rows.tolist() == [0, 0, 0, 0, 1, 1]
    assert batch.columns.tolist() == [1, 2, 3, 1, 0, 1]
    assert batch.targets.tolist() == [7, 8, 9, 10, 2, 3]
    assert batch.completion.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.owners.tolist() == [0, 0, 1] and batch.ends.tolist() == [4, 5, 2]


def test_rows_of_one_completion_need_no_mask() -> None:
    rows = [row for e in (*encoded(2), *thumbs()) for row in e.rows]
    batch = make_batch(rows)
    assert batch.inputs().keys() == {"input_ids"}
    assert batch.owners.tolist() == list(range(len(rows))) and torch.equal(batch.completion, batch.rows)
    assert batch.ends.tolist() == [len(prompt) + len(completion) - 1 for prompt, completion in rows]


def test_rows_are_shared_up_to_both_limits_and_not_beyond() -> None:
    pair = replace(encoded(1)[0], prompt=(3,) * 10, completions=((4,) * 5, (5,) * 7))
    assert pair.packed(Sharing(22, 17)) == [(pair.prompt, *pair.completions)]
    assert pair.packed(Sharing(21, 17)) == pair.packed(Sharing(22, 16)) == pair.packed(ALONE) == pair.rows
    alone = replace(pair, completions=pair.completions[:1])
    assert alone.packed(Sharing(22, 17)) == alone.rows


def test_micro_batches_of_shared_rows_hold_every_example_within_the_budget() -> None:
    examples = MIXTURES["all"]
    for budget in (1, 60, 1000):
        batches = micro_batches(examples, budget, WIDE)
        assert sorted(e.key for part in batches for e in part) == sorted(e.key for e in examples)
        sizes = [make_batch([row for e in part for row in e.packed(WIDE)]).input_ids.numel() for part in batches]
        assert all(size <= budget or len(part) == 1 for size, part in zip(sizes, batches, strict=True))
    rankings = MIXTURES["rankings of nine"]
    assert len(micro_batches(rankings, 300, WIDE)) < len(micro_batches(rankings, 300))


def test_a_model_that_is_known_shares_its_rows() -> None:
    assert how_to_share(MODEL).tokens > 0
