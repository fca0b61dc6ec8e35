"""One step over votes of every kind: who gets which loss, and that nothing pushes which should not."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from assistant.settings import NightSettings
from finetune.batches import Encoded, micro_rows, row_key
from finetune.kto import prepare_thumbs
from finetune.lora import attach_lora
from finetune.mixture import Sums
from finetune.scoring import row_logps
from finetune.train import accumulate_gradients, train_adapter
from tests.finetune_support import encoded, encoded_rankings, encoded_thumbs
from tests.tiny import tiny_model

NIGHT = NightSettings(rank=4, alpha=8, epochs=2, batch_examples=4, learning_rate=1e-2)
MODEL = tiny_model()


def reference_of(examples: Sequence[Encoded]) -> dict[str, float]:
    return {row_key(row): row_logps(MODEL, [row])[0] for e in examples for row in [*e.rows, *e.mismatch]}


def step(examples: Sequence[Encoded], budget: int = 100_000, **night: Any) -> tuple[Sums, torch.Tensor]:
    """The sums and the whole gradient of one step away from the reference."""
    reference = reference_of(examples)
    with attach_lora(MODEL, MODEL.lm_head, rank=4, alpha=8, seed=3) as lora:
        generator = torch.Generator().manual_seed(0)
        for layer in lora.layers.values():
            layer.b.data.normal_(std=0.05, generator=generator)
        sums = accumulate_gradients(MODEL, examples, reference, NIGHT.model_copy(update=night), budget)
        return sums, torch.cat([p.grad.flatten() for p in lora.parameters if p.grad is not None])


def thumbs(count: int = 6) -> list[Encoded]:
    return prepare_thumbs(encoded_thumbs(count), 64, 0)[0]


def everything() -> list[Encoded]:
    return [*encoded(3), *encoded(2, seed=1, pairs=False), *encoded_rankings(2, 4, seed=2), *thumbs()]


@pytest.mark.parametrize("loss", ["dpo", "ipo", "robust", "norm"])
def test_a_ranking_is_the_mean_of_its_pairs_in_loss_and_gradient(loss: str) -> None:
    ranking = replace(encoded_rankings(1, 4)[0], ranks=(1, 2, 2, 3))
    pairs = [
        replace(ranking, key=f"p{i}{j}", ranks=(), completions=(ranking.completions[i], ranking.completions[j]))
        for i, j in ranking.pairs
    ]
    assert len(pairs) == 5
    whole, gradient = step([ranking], pair_loss=loss, nll_weight=0)
    parts, expected = step(pairs, pair_loss=loss, nll_weight=0)
    assert whole.loss == pytest.approx(parts.loss, abs=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5) and gradient.abs().max() > 1e-3
    assert whole.numbers()["accuracy"] == pytest.approx(parts.numbers()["accuracy"])


def test_a_ranking_of_two_is_a_pair_under_either_loss_of_rankings() -> None:
    ranking = encoded_rankings(1, 2)[0]
    pair = replace(ranking, ranks=())
    expected, gradient = step([pair], label_smoothing=0)
    for loss in ("pairs", "plackett-luce"):
        sums, mine = step([ranking], label_smoothing=0, ranking_loss=loss)
        assert sums.loss == pytest.approx(expected.loss, abs=1e-5) and torch.allclose(mine, gradient, atol=1e-5)


def test_plackett_luce_leaves_pairs_to_the_loss_of_pairs() -> None:
    pairs, rankings = encoded(2), encoded_rankings(2, 5)
    together, _ = step([*pairs, *rankings], ranking_loss="plackett-luce", pair_loss="ipo")
    apart = [step(part, ranking_loss="plackett-luce", pair_loss="ipo")[0] for part in (pairs, rankings)]
    weights = [sum(e.weight for e in part) for part in (pairs, rankings)]
    mean = sum(s.loss * w for s, w in zip(apart, weights, strict=True)) / sum(weights)
    assert together.loss == pytest.approx(mean, abs=1e-4)
    assert step(rankings, ranking_loss="plackett-luce")[0].loss != pytest.approx(step(rankings)[0].loss, abs=1e-3)


def test_the_best_is_imitated_the_tied_share_it_and_nothing_is_where_none_is_good() -> None:
    [ranking] = encoded_rankings(1, 3)
    assert ranking.imitated == [0]
    assert replace(ranking, ranks=(1, 1, 2)).imitated == [0, 1]
    assert replace(ranking, none_is_good=True).imitated == []
    tied, _ = step([replace(ranking, ranks=(1, 1, 2))], dpo_weight=0, nll_weight=1)
    alone = [
        step([replace(ranking, ranks=(), completions=(text,))], nll_weight=1)[0].loss
        for text in ranking.completions[:2]
    ]
    assert tied.loss == pytest.approx(sum(alone) / 2, abs=1e-4)
    assert step([replace(ranking, none_is_good=True)], dpo_weight=0, nll_weight=1)[0].loss == 0


def test_a_flip_probability_of_an_example_counts_for_it_alone() -> None:
    first, second = encoded(2)
    plain, _ = step([first, second], label_smoothing=0.0)
    unsure, _ = step([first, replace(second, flip=0.4)], label_smoothing=0.0)
    same, _ = step([first, replace(second, flip=0.0)], label_smoothing=0.3)
    assert unsure.loss != pytest.approx(plain.loss, abs=1e-4)
    assert same.loss not in (pytest.approx(plain.loss, abs=1e-4), pytest.approx(unsure.loss, abs=1e-4))


def test_what_was_perhaps_chosen_by_a_slip_is_imitated_less() -> None:
    pair = encoded(1)[0]
    losses = {flip: step([replace(pair, flip=flip)], dpo_weight=0)[0].loss for flip in (None, 0.2, 0.5)}
    assert losses[0.2] == pytest.approx(0.6 * losses[None]) and losses[0.5] == 0 < losses[None]
    shown = replace(pair, demonstrated=True)
    assert step([replace(shown, flip=0.2)], dpo_weight=0)[0].loss == step([shown], dpo_weight=0)[0].loss


@pytest.mark.parametrize("budget", [1, 60, 300])
def test_cutting_a_mixed_step_into_micro_batches_changes_no_gradient(budget: int) -> None:
    whole, gradient = step(everything())
    cut, same = step(everything(), budget)
    assert torch.allclose(gradient, same, atol=1e-5)
    assert cut.loss == pytest.approx(whole.loss, abs=1e-4) and cut.kl == pytest.approx(whole.kl, abs=1e-4)


def test_single_rows_are_cut_within_the_budget_and_none_is_lost() -> None:
    rows = [row for e in everything() for row in e.rows]
    for budget in (1, 60, 1000):
        parts = micro_rows(rows, budget)
        assert sorted(row for part in parts for row in part) == sorted(rows)
        assert all(len(p) == 1 or len(p) * max(len(a) + len(b) for a, b in p) <= budget for p in parts)


def test_thumbs_raise_what_was_liked_and_lower_what_was_not() -> None:
    examples = thumbs(8)
    night = NIGHT.model_copy(update={"epochs": 12})
    trained = train_adapter(MODEL, examples, reference_of(examples), night)
    with attach_lora(MODEL, MODEL.lm_head, rank=4, alpha=8, seed=0) as lora, torch.no_grad():
        for name, layer in lora.layers.items():
            layer.a.copy_(trained.tensors[f"base_model.model.{name}.lora_A.weight"])
            layer.b.copy_(trained.tensors[f"base_model.model.{name}.lora_B.weight"])
        after = [row_logps(MODEL, e.rows)[0] for e in examples]
    before = [row_logps(MODEL, e.rows)[0] for e in examples]
    moved = [(new > old) == e.thumb for e, new, old in zip(examples, after, before, strict=True)]
    assert all(moved)
    assert all("kl" in numbers for numbers in trained.history)


def test_thumbs_of_one_side_leave_a_night_of_pairs_as_it_was_bit_for_bit() -> None:
    pairs = encoded(6)
    pile = [replace(thumb, thumb=True) for thumb in encoded_thumbs(20)]
    prepared, counts = prepare_thumbs([*pairs, *pile], 64, 0)
    assert prepared == pairs and counts["one_sided_thumbs"] == 20
    [with_pile, without] = [train_adapter(MODEL, e, reference_of(e), NIGHT).tensors for e in (prepared, pairs)]
    assert all(torch.equal(with_pile[name], without[name]) for name in without)


def test_a_pile_of_thumbs_weighs_no_more_than_what_stands_against_it() -> None:
    pile = [replace(thumb, key=f"up{i}", thumb=True, weight=1.0) for i, thumb in enumerate(encoded_thumbs(20))]
    against = replace(encoded_thumbs(1, seed=9)[0], key="down", thumb=False, weight=0.5)
    prepared, _ = prepare_thumbs([*pile, against], 64, 0)
    assert sum(e.weight * e.balance for e in prepared if e.thumb) == pytest.approx(0.5)
    assert [e.balance for e in prepared if not e.thumb] == [1.0]


def test_a_mismatched_completion_never_answered_its_prompt_and_fits() -> None:
    examples = encoded_thumbs(12)
    shared = [replace(e, prompt=examples[0].prompt) for e in examples[:5]]
    prepared, counts = prepare_thumbs([*shared, *examples[5:]], 24, 0)
    answers: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for e in prepared:
        answers.setdefault(e.prompt, set()).add(e.completions[0])
    for e in prepared:
        assert e.mismatched and len(e.prompt) + len(e.mismatched) <= 24
        assert not any(said[: len(e.mismatched)] == e.mismatched for said in answers[e.prompt])
    assert counts["thumbs_without_mismatch"] == 0
    assert prepare_thumbs([*shared, *examples[5:]], 24, 0)[0] == prepared
    assert prepare_thumbs([*shared, *examples[5:]], 24, 1)[0] != prepared


def test_thumbs_on_one_prompt_alone_are_learned_from_with_a_divergence_of_nothing() -> None:
    examples = [replace(e, prompt=(5, 6, 7)) for e in encoded_thumbs(4)]
    prepared, counts = prepare_thumbs(examples, 64, 0)
    assert counts["thumbs_without_mismatch"] == 4 and not any(e.mismatched for e in prepared)
    assert step(prepared)[0].kl == 0


def test_every_kind_in_one_training_is_the_same_every_time() -> None:
    examples = everything()
    first, again = (train_adapter(MODEL, examples, reference_of(examples), NIGHT) for _ in range(2))
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)
    assert {"accuracy", "kl"} <= {name for numbers in first.history for name in numbers}
