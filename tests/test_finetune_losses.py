"""The losses against hand-worked numbers, the dense head, and TRL's DPO trainer."""

import math
from pathlib import Path

import pytest
import torch

from assistant.settings import NightSettings
from finetune import losses
from finetune.batches import Encoded, row_key
from finetune.lora import attach_lora
from finetune.scoring import row_logps
from finetune.train import accumulate_gradients
from tests.tiny import tiny_model, tiny_tokenizer


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_dpo_of_a_policy_equal_to_its_reference_is_log_two() -> None:
    loss = losses.dpo_losses(tensor(-5), tensor(-7), tensor(-5), tensor(-7), beta=0.1)
    assert loss.tolist() == pytest.approx([math.log(2)])


def test_conservative_dpo_equals_the_numbers_worked_by_hand() -> None:
    """d = (-4 - -6) - (-9 - -8) = 3, β d = 1.5; -log σ(1.5) = 0.2014133, -log σ(-1.5) = 1.7014133."""
    loss = losses.dpo_losses(tensor(-4), tensor(-9), tensor(-6), tensor(-8), beta=0.5, label_smoothing=0.1)
    assert loss.tolist() == pytest.approx([0.9 * 0.2014132779827524 + 0.1 * 1.7014132779827524])


def test_conservative_dpo_stops_pushing_where_the_margin_says_what_the_smoothing_says() -> None:
    """The gradient is zero at σ(β d) = 1 - ε, so a slip cannot push a pair without end."""
    beta, epsilon = 0.1, 0.2
    logratio = math.log((1 - epsilon) / epsilon) / beta
    policy = tensor(logratio).requires_grad_()
    losses.dpo_losses(policy, tensor(0), tensor(0), tensor(0), beta, epsilon).sum().backward()
    assert policy.grad is not None and abs(policy.grad.item()) < 1e-12


def test_the_token_mean_of_each_row_equals_the_numbers_worked_by_hand() -> None:
    logps, rows = tensor(-1, -3, -2, -2, -5), torch.tensor([0, 0, 2, 2, 2])
    assert losses.token_mean_nll(logps, rows, 3).tolist() == [2, 0, 3]
    assert losses.sum_by_row(logps, rows, 3).tolist() == [-4, 0, -9]


@pytest.mark.parametrize("bias", [False, True])
def test_the_head_in_chunks_equals_the_dense_head_in_values_and_gradients(bias: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=bias).requires_grad_(False)
    hidden, targets = torch.randn(2 * losses.CHUNK + 7, 16), torch.randint(0, 50, (2 * losses.CHUNK + 7,))
    weights = torch.rand(len(hidden))
    mine, dense = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    chunked = losses.token_logps(mine, head, targets)
    expected = torch.log_softmax(head(dense), dim=-1).gather(1, targets[:, None])[:, 0]
    (chunked * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(chunked, expected, atol=1e-5)
    assert mine.grad is not None and dense.grad is not None
    assert torch.allclose(mine.grad, dense.grad, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(losses.token_logps(hidden, head, targets), expected, atol=1e-5)


def test_a_confident_head_in_bf16_keeps_its_small_gradient() -> None:
    """Subtracting two large bf16 sums would leave rounding noise where the probability is near one."""
    head = torch.nn.Linear(8, 4, bias=False).requires_grad_(False).to(torch.bfloat16)
    head.weight.copy_(torch.eye(4, 8) * 10)
    hidden = torch.zeros(1, 8, dtype=torch.bfloat16)
    hidden[0, 0] = 1
    mine, exact = hidden.clone().requires_grad_(), hidden.float().requires_grad_()
    losses.token_logps(mine, head, torch.tensor([0])).sum().backward()
    torch.log_softmax(exact @ head.weight.float().T, -1)[0, 0].backward()
    assert mine.grad is not None and exact.grad is not None
    assert torch.allclose(mine.grad.float(), exact.grad, rtol=0.02, atol=1e-7)


@pytest.mark.filterwarnings("ignore")  # TRL's own business
def test_dpo_loss_and_gradient_agree_with_trl(tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    texts = [
        ("What now?", "Let us look.", "No."),
        ("Why is that so?", "Because.", "It is late, I think."),
        ("Hm", "a", "b"),
    ]
    data = Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in texts])
    config = DPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=len(texts),
        beta=0.3,
        report_to="none",
        disable_tqdm=True,
    )
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = DPOTrainer(
        tiny_model(), args=config, train_dataset=data, processing_class=tiny_tokenizer(), peft_config=lora
    )
    batch = next(iter(trainer.get_train_dataloader()))
    named = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    torch.manual_seed(1)
    for parameter in named.values():
        parameter.data.normal_(std=0.1)
    trainer.model.train()
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    model = tiny_model()
    examples = _encoded_like(batch)
    reference = {row_key(row): row_logps(model, [row])[0] for e in examples for row in e.rows}
    night = NightSettings(rank=4, alpha=8, beta=0.3, label_smoothing=0, dpo_weight=1, nll_weight=0)
    with attach_lora(model, model.lm_head, rank=4, alpha=8, seed=0) as mine:
        for name, layer in mine.layers.items():
            for letter, own in (("A", layer.a), ("B", layer.b)):
                own.data.copy_(named[f"base_model.model.{name}.lora_{letter}.default.weight"])
        loss = accumulate_gradients(model, examples, reference, night).loss
        assert loss == pytest.approx(float(expected), abs=1e-4)
        assert abs(loss - math.log(2)) > 1e-3, "the policy must differ from its reference"
        assert len(named) == 2 * len(mine.layers)
        for name, layer in mine.layers.items():
            for letter, own in (("A", layer.a), ("B", layer.b)):
                theirs = named[f"base_model.model.{name}.lora_{letter}.default.weight"].grad
                assert torch.allclose(own.grad, theirs, atol=1e-4), name


def _encoded_like(batch: dict[str, torch.Tensor]) -> list[Encoded]:
    """The very tokens of a TRL batch: its first half chosen, its second half rejected."""
    rows = []
    for ids, attended, completed in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        kept = attended.bool()
        prompt = ids[kept & ~completed.bool()].tolist()
        rows.append((tuple(prompt), tuple(ids[kept & completed.bool()].tolist())))
    half = len(rows) // 2
    pairs = zip(rows[:half], rows[half:], strict=True)
    return [Encoded(f"e{i}", c[0], (c[1], r[1]), False, 1.0, f"c{i}") for i, (c, r) in enumerate(pairs)]
