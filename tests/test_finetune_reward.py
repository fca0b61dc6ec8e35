"""The reward model: its loss, where it looks, what its training moves, its zero, and its folder."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from assistant.adapters import read_adapter_id
from assistant.errors import AdapterMissing
from assistant.settings import NightSettings
from finetune.batches import Encoded
from finetune.errors import BadReward, NothingToLearn, TrainingAborted
from finetune.lora import attach_lora
from finetune.reward import (
    RewardHead,
    RewardModel,
    TrainedReward,
    accumulate_reward_gradients,
    pair_losses,
    train_reward,
)
from finetune.reward_folder import attach_reward, read_reward, write_reward
from tests.finetune_support import encoded, encoded_rankings
from tests.tiny import tiny_model

NIGHT = NightSettings(rank=4, alpha=8, batch_examples=4, reward_learning_rate=1e-2)
HALF = math.log(1 + math.exp(-0.5))
"""-log σ(0.5)"""


def compared() -> list[Encoded]:
    return encoded(4) + encoded_rankings(3, 3)


def mixture() -> list[Encoded]:
    return compared() + encoded(3, seed=1, pairs=False)


def head_of(bias: float = 0.5) -> RewardHead:
    return RewardHead(torch.randn(64, generator=torch.Generator().manual_seed(9)), bias)


def ranked(*ranks: int, weight: float = 1.0, flip: float | None = None) -> Encoded:
    return replace(encoded_rankings(1, len(ranks))[0], ranks=ranks, weight=weight, flip=flip)


def test_a_ranking_with_a_tie_equals_the_numbers_worked_by_hand() -> None:
    """r = 2, 1, 0.5 with ranks 1, 2, 2: margins 1 and 1.5 count, -log σ is 0.3132617 and 0.2014133; 0.5 is a tie."""
    losses, margins, weights = pair_losses(torch.tensor([2, 1, 0.5]), [ranked(1, 2, 2, weight=3.0)], 0.0)
    assert losses.tolist() == pytest.approx([0.3132617, 0.2014133])
    assert margins.tolist() == [1, 1.5] and weights.tolist() == [1.5, 1.5]


def test_a_slip_counts_with_its_own_probability_or_else_with_the_settings() -> None:
    """Margin 0.5: (1 - ε) · 0.4740770 + ε · 0.9740770."""
    members = [ranked(1, 2), ranked(1, 2, flip=0.3)]
    losses, _, _ = pair_losses(torch.tensor([0.5, 0, 0.5, 0]), members, 0.1)
    assert losses.tolist() == pytest.approx([HALF + 0.1 * 0.5, HALF + 0.3 * 0.5])


def gradients(examples: list[Encoded], token_budget: int = 100_000, mean_weight: float | None = None) -> list[Tensor]:
    model = tiny_model()
    with attach_lora(model, model.lm_head, rank=4, alpha=8, seed=3) as lora:
        for layer in lora.layers.values():
            layer.b.data.fill_(0.02)
        weight = nn.Parameter(head_of().weight)
        accumulate_reward_gradients(model, RewardHead(weight, 0.0), examples, NIGHT, token_budget, mean_weight)
        found = [p.grad for p in (*lora.parameters, weight) if p.grad is not None]
        assert len(found) == len(lora.parameters) + 1
        return found


def test_a_ranking_in_one_element_is_the_mean_of_its_pairs() -> None:
    ranking = encoded_rankings(1, 3)[0]
    pairs = [
        replace(ranking, key=f"{a}{b}", ranks=(), completions=(ranking.completions[a], ranking.completions[b]))
        for a, b in ranking.pairs
    ]
    together, apart = gradients([ranking]), gradients(pairs)
    assert len(pairs) == 3
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together, apart, strict=True))


@pytest.mark.parametrize("budget", [1, 80])
def test_cutting_a_step_into_micro_batches_changes_no_gradient(budget: int) -> None:
    whole, cut = gradients(compared()), gradients(compared(), budget)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, cut, strict=True))


def test_a_step_of_light_examples_has_a_gradient_as_light() -> None:
    examples = [replace(e, weight=0.01) for e in compared()]
    alone, among = gradients(examples), gradients(examples, mean_weight=1.0)
    assert all(torch.allclose(a / 100, b, atol=1e-7, rtol=1e-3) for a, b in zip(alone, among, strict=True))
    assert max(float(a.abs().max()) for a in alone) > 1e-3


def test_the_reward_is_read_at_the_last_token_though_it_is_the_padding_too() -> None:
    """The tokenizer pads with the end of the turn: whether a reply was ended must make a difference."""
    model, head = tiny_model(), head_of()
    end = model.config.pad_token_id
    rows = [((5, 6, 7), (8, 9, end)), ((5, 6, 7), (8, 9)), ((5,), (11, 12, 13, 14, 15, 16, end))]
    expected = []
    for prompt, completion in rows:
        with torch.no_grad():
            last = model.model(torch.tensor([prompt + completion])).last_hidden_state[0, -1]
        expected.append(float(last @ head.weight) + 0.5)
    assert RewardModel(model, head).rewards(rows).tolist() == pytest.approx(expected, abs=1e-4)
    assert abs(expected[0] - expected[1]) > 0.1


def test_rewards_come_in_the_order_of_the_rows_also_of_equal_ones() -> None:
    rewards = RewardModel(tiny_model(), head_of())
    rows = [row for e in encoded(20) for row in e.rows]
    given = rewards.rewards([*rows, rows[0]])
    assert given[-1] == given[0] and len(given) == 41 and not given.requires_grad
    assert given[:40].flip(0).tolist() == pytest.approx(rewards.rewards(rows[::-1]).tolist(), abs=1e-5)
    assert rewards.rewards([]).tolist() == []


def digest(model: nn.Module) -> str:
    hashed = hashlib.sha256()
    for name, value in model.state_dict().items():
        hashed.update(name.encode() + value.float().numpy().tobytes())
    return hashed.hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_moves_adapter_and_head_and_leaves_the_base_bit_identical(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    before = digest(model)
    trained = train_reward(model, mixture(), NIGHT)
    assert digest(model) == before
    moved = [name for name, t in trained.tensors.items() if name.endswith("lora_B.weight") and t.abs().max() > 0]
    assert len(moved) == len(trained.tensors) // 2
    assert trained.head.weight.abs().min() > 0 and trained.head.weight.dtype == torch.float32
    assert len(trained.history) == 2 and trained.history[0]["loss"] == pytest.approx(math.log(2))


def test_the_same_seed_gives_the_same_reward_model_bit_for_bit() -> None:
    first, again = train_reward(tiny_model(), mixture(), NIGHT), train_reward(tiny_model(), mixture(), NIGHT)
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)
    assert torch.equal(first.head.weight, again.head.weight) and first.head.bias == again.head.bias


def test_training_learns_the_order_of_pairs_and_rankings() -> None:
    history = train_reward(tiny_model(), compared(), NIGHT.model_copy(update={"reward_epochs": 20})).history
    assert all(step["accuracy"] == 1 and step["margin"] > 1 for step in history[-2:])
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def rewards_of(trained: TrainedReward, examples: list[Encoded]) -> Tensor:
    """Of each example's first completion."""
    model = tiny_model()
    with attach_lora(model, model.lm_head, rank=4, alpha=8, seed=0) as lora:
        lora.load(trained.tensors)
        return RewardModel(model, trained.head).rewards([e.rows[0] for e in examples])


def test_demonstrations_average_zero_or_else_the_preferred_replies_and_it_is_said_which() -> None:
    shown = encoded(3, seed=1, pairs=False)
    trained = train_reward(tiny_model(), compared() + shown, NIGHT)
    assert trained.centre == "demonstrations"
    rewards = rewards_of(trained, shown)
    assert float(rewards.mean()) == pytest.approx(0, abs=1e-5) and float(rewards.abs().max()) > 0.01
    alone = train_reward(tiny_model(), compared(), NIGHT)
    assert alone.centre == "preferred replies"
    assert float(rewards_of(alone, compared()).mean()) == pytest.approx(0, abs=1e-5)


def test_nothing_preferred_is_nothing_to_learn() -> None:
    with pytest.raises(NothingToLearn, match="preferred"):
        train_reward(tiny_model(), encoded(3, pairs=False), NIGHT)


@pytest.mark.parametrize("poison", ["base", "learning rate"])
def test_a_number_that_is_not_finite_stops_the_training_and_names_the_step(poison: str) -> None:
    model, night = tiny_model(), NIGHT
    if poison == "base":
        model.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.inf
    else:
        night = NIGHT.model_copy(update={"reward_learning_rate": 1e30})
    with pytest.raises(TrainingAborted, match="step [12]: .*not finite"):
        train_reward(model, mixture(), night)
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear


def write(folder: Path, trained: TrainedReward) -> str:
    about = {"base_id": "tiny", "base_name": "tiny", "template_hash": "", "run_id": "r"}
    return write_reward(folder, trained, rank=4, alpha=8, **about)


@pytest.fixture(scope="module")
def trained() -> TrainedReward:
    return train_reward(tiny_model(), mixture(), NIGHT)


def test_a_reward_model_read_from_its_folder_gives_the_rewards_that_were_trained(
    tmp_path: Path, trained: TrainedReward
) -> None:
    made = write(tmp_path / "out", trained)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    saved, model = read_reward(tmp_path / "out", "tiny"), tiny_model()
    assert saved.id == made and made.startswith("reward-") and saved.centre == "demonstrations"
    with attach_reward(model, saved) as reward:
        read = reward.rewards([e.rows[0] for e in compared()])
    assert torch.allclose(read, rewards_of(trained, compared()), atol=1e-6)
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear


@pytest.mark.parametrize(
    "file",
    ["reward_head.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "reward.json"],
)
@pytest.mark.parametrize("damage", ["absent", "altered"])
def test_a_damaged_reward_model_is_refused(tmp_path: Path, trained: TrainedReward, file: str, damage: str) -> None:
    write(tmp_path / "out", trained)
    path = tmp_path / "out" / file
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BadReward, match="is damaged|There is no reward model in"):
        read_reward(tmp_path / "out", "tiny")


def test_an_adapter_of_another_training_is_not_taken_for_the_reward_models(
    tmp_path: Path, trained: TrainedReward
) -> None:
    write(tmp_path / "out", trained)
    write(tmp_path / "other", train_reward(tiny_model(), compared(), NIGHT.model_copy(update={"seed": 1})))
    (tmp_path / "out" / "adapter").rename(tmp_path / "old")
    (tmp_path / "other" / "adapter").rename(tmp_path / "out" / "adapter")
    with pytest.raises(BadReward, match="not the ones written"):
        read_reward(tmp_path / "out", "tiny")


def test_a_reward_model_of_another_base_is_refused(tmp_path: Path, trained: TrainedReward) -> None:
    write(tmp_path / "out", trained)
    with pytest.raises(BadReward, match="another model"):
        read_reward(tmp_path / "out", "other")


def test_a_reward_model_is_no_adapter_to_answer_with(tmp_path: Path, trained: TrainedReward) -> None:
    write(tmp_path / "out", trained)
    for folder in (tmp_path / "out", tmp_path / "out" / "adapter"):
        with pytest.raises(AdapterMissing, match="is a reward model"):
            read_adapter_id(folder)
