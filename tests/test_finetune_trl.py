"""Losses and gradients of a step against TRL's own trainers, on a tiny Llama and the very tokens of TRL's batch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from assistant.settings import NightSettings
from finetune.batches import Encoded, Row, row_key
from finetune.kto import balance_sides
from finetune.lora import attach_lora
from finetune.mixture import Sums
from finetune.reward import RewardHead, accumulate_reward_gradients
from finetune.scoring import row_logps
from finetune.train import accumulate_gradients
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own business

PAIRS = [
    {"prompt": "What now?", "chosen": "Let us look.", "rejected": "No."},
    {"prompt": "Why is that so?", "chosen": "Because.", "rejected": "It is late, I think."},
    {"prompt": "Hm", "chosen": "a", "rejected": "b"},
]
THUMBS = [
    {"prompt": "What now?", "completion": "Let us look.", "label": True},
    {"prompt": "Why is that so?", "completion": "It is late, I think.", "label": False},
    {"prompt": "Hm", "completion": "a", "label": True},
    {"prompt": "And then?", "completion": "the teacher asks the student", "label": True},
]
SHOWN = [
    {"prompt": "What now?", "completion": "Let us look."},
    {"prompt": "Why is that so?", "completion": "Because."},
]


def common(folder: Path, size: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": size,
        "report_to": "none",
        "disable_tqdm": True,
    }


def trainer_of(kind: type, config: object, rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset
    from peft import LoraConfig

    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return kind(
        tiny_model(),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        peft_config=lora,
    )


def assert_same_step(trainer: Any, encode: Callable[[Any], list[Encoded]], seed: int = 1, **night: Any) -> Sums:
    """The same adapter, far from its reference, gives the same loss and the same gradient of every factor."""
    batch = next(iter(trainer.get_train_dataloader()))
    examples = encode(batch)
    named = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    torch.manual_seed(seed)
    for parameter in named.values():
        parameter.data.normal_(std=0.1)
    trainer.model.train()
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    model = tiny_model()
    reference = {row_key(row): row_logps(model, [row])[0] for e in examples for row in [*e.rows, *e.mismatch]}
    settings = NightSettings(rank=4, alpha=8, **{"beta": 0.3, "dpo_weight": 1, "nll_weight": 0, **night})
    with attach_lora(model, model.lm_head, rank=4, alpha=8, seed=0) as mine:
        factors = [
            (own, named[f"base_model.model.{name}.lora_{letter}.default.weight"])
            for name, layer in mine.layers.items()
            for letter, own in (("A", layer.a), ("B", layer.b))
        ]
        for own, theirs in factors:
            own.data.copy_(theirs)
        sums = accumulate_gradients(model, examples, reference, settings)
        assert len(named) == len(factors)
        assert sums.loss == pytest.approx(float(expected), abs=1e-4)
        for own, theirs in factors:
            assert own.grad is not None and theirs.grad is not None
            assert torch.allclose(own.grad, theirs.grad, atol=1e-4)
        assert max(float(own.grad.abs().max()) for own, _ in factors if own.grad is not None) > 1e-2
    return sums


@pytest.mark.parametrize(
    ("loss_type", "theirs", "ours"),
    [
        ("sigmoid", {}, {"pair_loss": "dpo", "label_smoothing": 0}),
        ("robust", {"label_smoothing": 0.2}, {"pair_loss": "robust", "label_smoothing": 0.2}),
        ("ipo", {}, {"pair_loss": "ipo", "ipo_tau": 0.3}),
        ("sigmoid_norm", {}, {"pair_loss": "norm", "norm_beta": 0.3, "label_smoothing": 0}),
    ],
)
def test_losses_of_pairs_agree_with_trl(
    tmp_path: Path, loss_type: str, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(**common(tmp_path, len(PAIRS)), beta=0.3, loss_type=[loss_type], **theirs)

    def encode(batch: Any) -> list[Encoded]:
        rows = rows_of(batch)
        pairs = zip(rows[: len(PAIRS)], rows[len(PAIRS) :], strict=True)
        return [Encoded(f"e{i}", c[0], (c[1], r[1]), False, 1.0, f"c{i}") for i, (c, r) in enumerate(pairs)]

    assert_same_step(trainer_of(DPOTrainer, config, PAIRS), encode, **ours)


def test_the_reward_loss_agrees_with_trl_where_the_padding_is_not_the_end(tmp_path: Path) -> None:
    """TRL scores at the last token that is no padding; here that must be the end of the turn, as it is for us."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    base = tiny_model()
    theirs = LlamaForSequenceClassification(base.config.__class__(**{**base.config.to_dict(), "num_labels": 1}))
    theirs.model.load_state_dict(base.model.state_dict())
    trainer: Any = RewardTrainer(
        theirs,
        args=RewardConfig(**common(tmp_path, len(PAIRS)), pad_token="<|endoftext|>"),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="SEQ_CLS"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    named = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    torch.manual_seed(1)
    for parameter in named.values():
        parameter.data.normal_(std=0.1)
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    rows = [
        tuple(ids[kept.bool()].tolist()) for ids, kept in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    sides = list(zip(rows[: len(PAIRS)], rows[len(PAIRS) :], strict=True))
    examples = [Encoded(f"e{i}", c[:1], (c[1:], r[1:]), False, 1.0, f"c{i}") for i, (c, r) in enumerate(sides)]
    score = named.pop("base_model.model.score.modules_to_save.default.weight")
    with attach_lora(base, base.lm_head, rank=4, alpha=8, seed=0) as mine:
        factors = [
            (own, named[f"base_model.model.{name}.lora_{letter}.default.weight"])
            for name, layer in mine.layers.items()
            for letter, own in (("A", layer.a), ("B", layer.b))
        ]
        weight = torch.nn.Parameter(score.detach()[0].clone())
        for own, other in factors:
            own.data.copy_(other)
        night = NightSettings(label_smoothing=0)
        found = accumulate_reward_gradients(base, RewardHead(weight, 0.0), examples, night)
    assert found["loss"] == pytest.approx(float(expected), abs=1e-4)
    assert len(named) == len(factors)
    for own, other in [*factors, (weight, score)]:
        assert own.grad is not None and other.grad is not None
        assert torch.allclose(own.grad, other.grad, atol=1e-4) and float(own.grad.abs().max()) > 0


def test_kto_agrees_with_trl_where_its_two_sides_are_weighed_alike(tmp_path: Path) -> None:
    from trl import KTOConfig, KTOTrainer

    up, down = balance_sides(3.0, 1.0)
    config = KTOConfig(**common(tmp_path, len(THUMBS)), beta=0.3, desirable_weight=up, undesirable_weight=down)

    def encode(batch: Any) -> list[Encoded]:
        others = rows_of(batch, "KL_")
        return [
            Encoded(
                f"e{i}", prompt, (said,), False, 1.0, f"c{i}", thumb=bool(label),
                balance=up if label else down, mismatched=other,
            )
            for i, ((prompt, said), (_, other), label) in enumerate(
                zip(rows_of(batch), others, batch["label"], strict=True)
            )
        ]  # fmt: skip

    sums = assert_same_step(trainer_of(KTOTrainer, config, THUMBS), encode, seed=5)
    assert sums.kl is not None and sums.kl > 0.1, "the divergence must count"


def test_imitation_agrees_with_trl_where_examples_weigh_what_they_have_tokens(tmp_path: Path) -> None:
    """TRL's mean is over the tokens of a batch, ours over the examples of a step."""
    from trl import SFTConfig, SFTTrainer

    def encode(batch: Any) -> list[Encoded]:
        rows = rows_of({**batch, "completion_mask": batch["labels"] != -100})
        return [Encoded(f"e{i}", p, (c,), True, float(len(c)), f"c{i}") for i, (p, c) in enumerate(rows)]

    config = SFTConfig(**common(tmp_path, len(SHOWN)), completion_only_loss=True)
    assert_same_step(trainer_of(SFTTrainer, config, SHOWN), encode)


def rows_of(batch: Any, prefix: str = "") -> Sequence[Row]:
    """The very tokens of a TRL batch."""
    rows = []
    masks = batch[f"{prefix}attention_mask"], batch[f"{prefix}completion_mask"]
    for ids, attended, completed in zip(batch[f"{prefix}input_ids"], *masks, strict=True):
        kept, said = attended.bool(), completed.bool()
        rows.append((tuple(ids[kept & ~said].tolist()), tuple(ids[kept & said].tolist())))
    return rows
