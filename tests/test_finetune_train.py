"""Training: what it moves, what it leaves alone, and that it is the same every time."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from assistant.adapters import load_tensors, write_adapter
from assistant.lora import AdapterBank
from assistant.settings import NightSettings
from finetune import train
from finetune.attention import SHORT, short_rows
from finetune.batches import Encoded, SharedRow, make_batch, micro_batches, plan_steps, row_key
from finetune.errors import NothingToLearn, TrainingAborted
from finetune.lora import attach_lora
from finetune.mixture import Sums
from finetune.reference import LogpCache, reference_logps, reference_rows
from finetune.scoring import batch_token_logps, completion_logps, row_logps
from finetune.train import accumulate_gradients, schedule, times_seen, train_adapter
from tests.finetune_support import encoded, encoded_rankings
from tests.tiny import tiny_model, tiny_tokenizer

NIGHT = NightSettings(rank=4, alpha=8, epochs=2, batch_examples=4, learning_rate=1e-2)


def reference_of(model: torch.nn.Module, examples: list[Encoded]) -> dict[str, float]:
    return {row_key(row): row_logps(model, [row])[0] for e in examples for row in e.rows}


def mixture() -> list[Encoded]:
    return encoded(5) + encoded(3, seed=1, pairs=False) + encoded(2, seed=2, demonstrated=True)


def digest(model: torch.nn.Module) -> str:
    hashed = hashlib.sha256()
    for name, value in model.state_dict().items():
        hashed.update(name.encode() + value.float().numpy().tobytes())
    return hashed.hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_moves_the_adapter_and_leaves_the_base_bit_identical(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    before, examples = digest(model), mixture()
    trained = train_adapter(model, examples, reference_of(model, examples), NIGHT)
    assert digest(model) == before
    moved = [name for name, t in trained.tensors.items() if name.endswith("lora_B.weight") and t.abs().max() > 0]
    assert len(moved) == len(trained.tensors) // 2
    assert {t.dtype for t in trained.tensors.values()} == {torch.float32}
    assert "lm_head" not in " ".join(trained.tensors)


def test_a_single_step_moves_every_part_of_the_adapter_that_has_a_gradient() -> None:
    model, examples = tiny_model(), encoded(4)
    night = NIGHT.model_copy(update={"epochs": 1})
    trained = train_adapter(model, examples, reference_of(model, examples), night)
    assert len(trained.history) == 1
    assert all(t.abs().max() > 0 for name, t in trained.tensors.items() if "lora_B" in name)


def test_the_same_seed_gives_the_same_adapter_bit_for_bit_and_another_seed_another() -> None:
    examples = mixture()
    reference = reference_of(tiny_model(), examples)
    nights = [NIGHT, NIGHT, NIGHT.model_copy(update={"seed": 1})]
    first, again, other = (train_adapter(tiny_model(), examples, reference, night).tensors for night in nights)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_training_ranks_the_pairs_and_raises_the_demonstrations() -> None:
    examples = mixture()
    model = tiny_model()
    night = NIGHT.model_copy(update={"epochs": 20})
    history = train_adapter(model, examples, reference_of(model, examples), night).history
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert sum(step.get("accuracy", 1) for step in history[-3:]) == 3


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_cutting_a_step_into_micro_batches_changes_no_gradient(budget: int) -> None:
    examples, model = mixture(), tiny_model()
    reference = reference_of(model, examples)

    def gradients(token_budget: int) -> list[torch.Tensor]:
        with attach_lora(model, model.lm_head, rank=4, alpha=8, seed=3) as lora:
            for layer in lora.layers.values():
                layer.b.data.fill_(0.02)
            accumulate_gradients(model, examples, reference, NIGHT, token_budget)
            return [p.grad for p in lora.parameters if p.grad is not None]

    for whole, cut in zip(gradients(100_000), gradients(budget), strict=True):
        assert torch.allclose(whole, cut, atol=1e-6)


def test_a_step_of_light_examples_has_a_gradient_as_light_and_the_same_loss() -> None:
    """Else a person's capped share would come back by the number of their votes."""
    model, examples = tiny_model(), [replace(e, weight=1.0) for e in mixture()]
    reference = reference_of(model, examples)

    def step(weight: float) -> tuple[float, torch.Tensor]:
        light = [replace(e, weight=weight) for e in examples]
        with attach_lora(model, model.lm_head, rank=4, alpha=8, seed=3) as lora:
            for layer in lora.layers.values():
                layer.b.data.fill_(0.02)
            sums = accumulate_gradients(model, light, reference, NIGHT, mean_weight=1.0)
            return sums.loss, torch.cat([p.grad.flatten() for p in lora.parameters if p.grad is not None])

    (loss, whole), (light_loss, light) = step(1.0), step(0.01)
    assert light_loss == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(light, whole / 100, atol=1e-7, rtol=1e-3) and float(whole.abs().max()) > 1e-3


def test_micro_batches_hold_every_example_once_within_the_budget() -> None:
    examples = mixture()
    for budget in (1, 50, 100, 1000):
        batches = micro_batches(examples, budget)
        assert sorted(e.key + str(e.prompt) for b in batches for e in b) == sorted(
            e.key + str(e.prompt) for e in examples
        )
        for batch in batches:
            padded = sum(len(e.completions) for e in batch) * max(e.width for e in batch)
            assert padded <= budget or len(batch) == 1


def test_every_epoch_takes_each_example_once_in_an_order_of_its_own() -> None:
    steps = plan_steps([2] * 10, 4, seed=0)
    assert [len(step) for step in steps] == [4, 4, 2] * 2
    first, second = sum(steps[:3], []), sum(steps[3:], [])
    assert sorted(first) == sorted(second) == list(range(10)) and first != second


def test_a_later_epoch_holds_only_what_is_seen_so_often() -> None:
    steps = plan_steps([1, 3, 2, 1, 3], 2, seed=0)
    assert [sorted(sum(part, [])) for part in (steps[:3], steps[3:5], steps[5:])] == [
        [0, 1, 2, 3, 4],
        [1, 2, 4],
        [1, 4],
    ]


def test_votes_are_seen_once_and_what_is_sure_twice() -> None:
    times = [(e.demonstrated, times_seen(e, NightSettings())) for e in mixture()]
    assert set(times) == {(False, 1), (True, 2)}
    sure = replace(encoded(1)[0], sure=True)
    assert times_seen(sure, NightSettings()) == 2 and times_seen(sure, NightSettings(epochs=3)) == 3
    rewritten = replace(encoded(1, demonstrated=True)[0], source="ai-rewrite")
    assert times_seen(rewritten, NightSettings()) == 1, "what AI judges say has a share that is capped"


def test_padding_on_the_right_without_a_mask_changes_no_log_probability() -> None:
    model, rows = tiny_model(), [row for e in encoded(4) for row in e.rows]
    batch = make_batch(rows)
    together = torch.zeros(len(rows)).index_add(0, batch.rows, batch_token_logps(model, batch).detach())
    assert together.tolist() == pytest.approx(row_logps(model, rows), abs=1e-4)


def test_the_attention_for_short_rows_takes_padding_on_the_left() -> None:
    """A padded token looks at nothing, and its NaN reached every token after it."""
    model = tiny_model()
    ids = torch.tensor([[2, 2, 2, 40, 41], [30, 31, 32, 33, 34]])
    mask = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    asked = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad(), short_rows(model):
        padded, alone = model(**asked).logits[0, -2:], model(input_ids=ids[:1, -2:]).logits[0]
    torch.testing.assert_close(padded, alone)


def test_the_attention_for_short_rows_goes_on_from_a_cache() -> None:
    model = tiny_model()
    ids = torch.arange(30, 40)[None]
    with torch.no_grad(), short_rows(model):
        whole = model(ids).logits[0, -1]
        past = model(ids[:, :-1], use_cache=True).past_key_values
        onward = model(ids[:, -1:], past_key_values=past, use_cache=True).logits[0, -1]
    torch.testing.assert_close(onward, whole)


def test_the_attention_for_short_rows_equals_sdpa_in_values_and_gradients() -> None:
    model, examples = tiny_model(), mixture()
    model.set_attn_implementation("sdpa")
    reference = reference_of(model, examples)

    def step() -> tuple[float, list[torch.Tensor]]:
        with attach_lora(model, model.lm_head, rank=4, alpha=8, seed=3) as lora:
            for layer in lora.layers.values():
                layer.b.data.fill_(0.02)
            loss = accumulate_gradients(model, examples, reference, NIGHT).loss
            return loss, [p.grad for p in lora.parameters if p.grad is not None]

    plain_loss, plain = step()
    with short_rows(model):
        assert model.config._attn_implementation != "sdpa"
        short_loss, short = step()
    assert model.config._attn_implementation == "sdpa"
    assert short_loss == pytest.approx(plain_loss, abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, short, strict=True))


def test_rows_longer_than_short_take_the_plain_path() -> None:
    model = tiny_model()
    model.set_attn_implementation("sdpa")
    row = (tuple(range(3, 40)), tuple(3 + i % 200 for i in range(SHORT)))
    plain = row_logps(model, [row])
    with short_rows(model):
        assert row_logps(model, [row]) == plain


def test_log_probabilities_equal_those_of_the_whole_logits() -> None:
    model = tiny_model()
    (prompt, completion) = row = encoded(1)[0].rows[0]
    ids = torch.tensor([prompt + completion])
    logps = torch.log_softmax(model(ids).logits[0], -1).detach()
    expected = sum(float(logps[len(prompt) - 1 + i, token]) for i, token in enumerate(completion))
    assert row_logps(model, [row]) == pytest.approx([expected], abs=1e-4)


@pytest.mark.parametrize("poison", ["reference", "base"])
def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_step_and_the_examples(poison: str) -> None:
    model, examples = tiny_model(), encoded(8)
    reference = reference_of(model, examples)
    culprit = examples[plan_steps([2] * 8, 4, 0)[1][0]]
    if poison == "base":
        model.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.inf
        said = r"step 1: the loss of 4 of 4 examples \("
    else:
        reference[row_key(culprit.rows[0])] = math.nan
        said = rf"step 2: the loss of 1 of 4 examples \({culprit.key}\) is not finite"
    with pytest.raises(TrainingAborted, match=said):
        train_adapter(model, examples, reference, NIGHT)
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear


@pytest.mark.parametrize("what", ["gradient", "weight"])
def test_a_gradient_or_weight_that_is_not_finite_is_named_by_its_layer(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, examples = tiny_model(), encoded(8)

    def poisoned(*args: Any, **named: Any) -> Sums:
        sums = accumulate_gradients(*args, **named)
        factor = model.model.layers[1].self_attn.v_proj.b
        (factor.grad if what == "gradient" else factor.data)[3, 1] = math.inf
        return sums

    monkeypatch.setattr(train, "accumulate_gradients", poisoned)
    with pytest.raises(TrainingAborted, match=rf"step 1: the {what} of model\.layers\.1\.self_attn\.v_proj\.lora_B is"):
        train_adapter(model, examples, reference_of(model, examples), NIGHT)


def test_a_gradient_whose_norm_alone_is_not_finite_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = tiny_model(), encoded(8)

    def enormous(*args: Any, **named: Any) -> Sums:
        sums = accumulate_gradients(*args, **named)
        for layer in model.model.layers:
            layer.mlp.up_proj.b.grad.fill_(3e38)
        return sums

    monkeypatch.setattr(train, "accumulate_gradients", enormous)
    with pytest.raises(TrainingAborted, match="the gradient of all factors together"):
        train_adapter(model, examples, reference_of(model, examples), NIGHT)


def test_a_learning_rate_that_explodes_stops_the_training() -> None:
    model, examples = tiny_model(), encoded(8)
    night = NIGHT.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingAborted, match="not finite"):
        train_adapter(model, examples, reference_of(model, examples), night)


def test_nothing_to_train_on_is_said() -> None:
    with pytest.raises(NothingToLearn):
        train_adapter(tiny_model(), [], {}, NIGHT)


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [schedule(step, 40) for step in range(1, 41)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert schedule(1, 1) == 1


def test_peft_and_the_serving_side_read_the_adapter_as_it_was_trained(tmp_path: Path) -> None:
    """One adapter, three readers: training, PEFT and the app must compute the same logits."""
    from peft import PeftModel

    model, examples = tiny_model(), mixture()
    row = examples[0].rows[0]
    ids = torch.tensor([row[0] + row[1]])
    trained = train_adapter(model, examples, reference_of(model, examples), NIGHT)
    with attach_lora(model, model.lm_head, rank=4, alpha=8, seed=0) as lora, torch.no_grad():
        for name, layer in lora.layers.items():
            layer.a.copy_(trained.tensors[f"base_model.model.{name}.lora_A.weight"])
            layer.b.copy_(trained.tensors[f"base_model.model.{name}.lora_B.weight"])
        mine = model(ids).logits
    info = write_adapter(
        tmp_path,
        trained.tensors,
        rank=4,
        alpha=8,
        target_modules=trained.target_modules,
        base_id="tiny",
        base_name="tiny",
        template_hash="",
        run_id="r",
    )
    assert set(load_tensors(info)) == set(trained.tensors)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(tiny_model(), str(info.folder))(ids).logits
        served = tiny_model()
        bank = AdapterBank(served, "tiny")
        with bank.use(bank.load(info.folder)):
            ours = served(ids).logits
        plain = tiny_model()(ids).logits
    assert torch.allclose(mine, theirs, atol=1e-4) and torch.allclose(mine, ours, atol=1e-4)
    assert not torch.allclose(mine, plain, atol=1e-2)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many rows went through the model."""
    from finetune import reference

    seen: list[int] = []

    def counting(model: PreTrainedModel, rows: Sequence[SharedRow]) -> list[list[float]]:
        seen.append(len(rows))
        return completion_logps(model, rows)

    monkeypatch.setattr(reference, "completion_logps", counting)
    return lambda: sum(seen)


def test_reference_log_probabilities_are_computed_once_for_all_nights(
    tmp_path: Path, counted: Callable[[], int]
) -> None:
    model, rows = tiny_model(), [row for e in encoded(20) for row in e.rows]
    first = reference_logps(model, rows[:30], LogpCache(tmp_path, "b", "fp32", "t"))
    again = reference_logps(model, rows, LogpCache(tmp_path, "b", "fp32", "t"))
    assert counted() == len(rows)
    assert {key: again[key] for key in first} == first


def test_a_base_whose_probabilities_are_no_numbers_is_told_and_not_remembered(tmp_path: Path) -> None:
    model, rows = tiny_model(), [row for e in encoded(3) for row in e.rows]
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(TrainingAborted, match="The base itself gives a reply a probability that is not a number"):
        reference_logps(model, rows, LogpCache(tmp_path, "b", "fp32", "t"))
    cache = LogpCache(tmp_path, "b", "fp32", "t")
    cache.record(rows[:2], [[float("nan")], [-1.0]])
    reread = LogpCache(tmp_path, "b", "fp32", "t")
    assert [reread.get(row) for row in rows[:2]] == [None, [-1.0]]


def test_completions_that_share_a_row_have_their_references_by_that_row(
    tmp_path: Path, counted: Callable[[], int]
) -> None:
    model, (example,) = tiny_model(), encoded_rankings(1, 4)
    wide = reference_rows(model, [example])
    cache = LogpCache(tmp_path, "b", "fp32", "t")
    found = reference_logps(model, wide, cache)
    assert counted() == len(wide) == 1 and reference_logps(model, wide, cache) == found and counted() == 1
    assert list(found) == [row_key(row) for row in example.rows]
    assert list(found.values()) == pytest.approx(row_logps(model, example.rows), abs=1e-4)
    assert cache.get(example.rows[0]) is None  # alone it may differ in its last bits


def test_what_nobody_judged_needs_no_reference() -> None:
    assert reference_rows(tiny_model(), [replace(encoded(1)[0], completions=((5,),), demonstrated=True)]) == []


@pytest.mark.parametrize("other", [("b2", "fp32", "t"), ("b", "bf16", "t"), ("b", "fp32", "t2")])
def test_another_base_form_or_template_does_not_use_the_cache(tmp_path: Path, other: tuple[str, str, str]) -> None:
    row = encoded(1)[0].rows[0]
    LogpCache(tmp_path, "b", "fp32", "t").record([row], [[-1.5]])
    assert LogpCache(tmp_path, "b", "fp32", "t").get(row) == [-1.5]
    assert LogpCache(tmp_path, *other).get(row) is None


def test_a_cache_whose_last_line_a_kill_tore_is_read_up_to_it_and_goes_on(tmp_path: Path) -> None:
    first, second, third = encoded(1)[0].rows + encoded(1, seed=5)[0].rows[:1]
    cache = LogpCache(tmp_path, "b", "fp32", "t")
    cache.record([first, second], [[-1.0], [-2.0, -4.0]])
    cache.path.write_bytes(cache.path.read_bytes()[:-20])
    LogpCache(tmp_path, "b", "fp32", "t").record([third], [[-3.0]])
    reread = LogpCache(tmp_path, "b", "fp32", "t")
    assert [reread.get(row) for row in (first, second, third)] == [[-1.0], None, [-3.0]]


def test_a_tokenizer_row_ends_with_the_end_of_turn() -> None:
    from assistant.prompt import encode_completion

    tokenizer = tiny_tokenizer()
    assert encode_completion(tokenizer, "a")[-1] == tokenizer.eos_token_id
