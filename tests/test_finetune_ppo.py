"""PPO on a tiny model: what moves, what stays, what stops it, and that replies come from the trained distribution."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from assistant.settings import NightSettings
from finetune import rollouts
from finetune.batches import ALONE, Row, Sharing, make_batch
from finetune.errors import NothingToLearn, TrainingAborted
from finetune.intervals import TO_AN_END
from finetune.lora import attach_adapters, attach_lora
from finetune.ppo import (
    RETURNS,
    Episode,
    PolicyTraining,
    TrainedPolicy,
    accumulate_ppo_gradients,
    plan_prompts,
    train_policy,
)
from finetune.ppo_losses import whiten
from finetune.ppo_models import Models, Reward, Scored, StartAdapter, attach_models, by_token
from finetune.reward import RewardHead
from finetune.reward_folder import SavedReward
from finetune.rollouts import Rollout, cut_prompts, sample_replies
from finetune.scoring import batch_token_logps
from tests.tiny import tiny_model, tiny_tokenizer

NIGHT = NightSettings(
    rank=4,
    alpha=8,
    ppo_iterations=4,
    ppo_group=1,
    ppo_prompts=32,
    ppo_reply_tokens=6,
    ppo_learning_rate=5e-3,
    ppo_kl_limit=2.0,
    ppo_cut_penalty=0.0,
)
PROMPTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13, 14)]
STOP = 2


def evenness(rows: Sequence[Row], texts: Sequence[str]) -> Tensor:
    """The share of a reply's tokens whose id is even: half, at random."""
    return torch.tensor([sum(token % 2 == 0 for token in reply) / len(reply) for _, reply in rows])


def trained(night: NightSettings = NIGHT, reward: Reward = evenness, ptx: Sequence[Row] = ()) -> TrainedPolicy:
    model = tiny_model()
    with attach_models(model, night) as models:
        return train_policy(models, tiny_tokenizer(), PROMPTS, reward, ptx, night)


@contextmanager
def opened() -> Iterator[Models]:
    with attach_models(tiny_model(), NIGHT) as models:
        for lora in models.adapters.loras.values():
            for number, layer in enumerate(lora.layers.values()):
                torch.nn.init.normal_(layer.b, std=0.02, generator=torch.Generator().manual_seed(number))
        yield models


def start_adapter() -> StartAdapter:
    model = tiny_model()
    with attach_lora(model, model.get_output_embeddings(), rank=2, alpha=4, seed=3) as lora:
        for layer in lora.layers.values():
            torch.nn.init.normal_(layer.b, std=0.05, generator=torch.Generator().manual_seed(4))
        return StartAdapter(lora.tensors(), 2, 4)


@pytest.mark.long
def test_the_mean_reward_rises_and_the_best_policy_within_the_limit_is_kept() -> None:
    night = NIGHT.model_copy(update={"ppo_iterations": 20, "ppo_prompts": 96, "ppo_beta": 0.05})
    made = trained(night)
    rewards = [numbers["reward"] for numbers in made.history]
    assert made.chosen > 0 and rewards[made.chosen] > rewards[0] + 0.2
    assert all(numbers["kl"] <= night.ppo_kl_limit for numbers in made.history[: made.chosen + 1])
    ends = [numbers["kl"] + TO_AN_END * numbers["kl_error"] for numbers in made.history]
    allowed = [r for r, end in zip(rewards, ends, strict=True) if end <= night.ppo_kl_limit]
    assert rewards[made.chosen] == max(allowed)


@pytest.mark.long
def test_the_same_seed_gives_the_same_policy_bit_for_bit_and_another_seed_another() -> None:
    first, again, other = (trained(night).tensors for night in (NIGHT, NIGHT, NIGHT.model_copy(update={"seed": 1})))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_training_moves_policy_and_value_and_leaves_base_and_reference_bit_identical() -> None:
    model, start = tiny_model(), start_adapter()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with attach_models(model, NIGHT, start) as models:
        made = train_policy(models, tiny_tokenizer(), PROMPTS, evenness, (), NIGHT)
        reference, value = models.adapters["reference"].tensors(), models.adapters["value"].tensors()
    assert all(torch.equal(reference[name], start.tensors[name]) for name in reference)
    assert not any(torch.equal(made.tensors[name], start.tensors[name]) for name in reference if "lora_B" in name)
    assert all(value[name].abs().max() > 0 for name in value if "lora_B" in name)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_training_begins_at_the_reference_with_no_divergence_at_all() -> None:
    with attach_models(tiny_model(), NIGHT, start_adapter()) as models:
        made = train_policy(models, tiny_tokenizer(), PROMPTS, evenness, (), NIGHT)
    assert made.history[0]["kl"] == 0 and made.history[1]["kl"] != 0


def test_a_policy_beyond_the_limit_is_taken_back_and_learns_at_half_the_rate() -> None:
    limit = 0.002
    made = trained(NIGHT.model_copy(update={"ppo_kl_limit": limit, "ppo_iterations": 20}))
    beyond = [numbers["kl"] > limit for numbers in made.history]
    assert made.stopped and sum(beyond) == RETURNS + 1 and beyond[-1]
    assert not any(numbers["kl"] > limit for numbers, before in zip(made.history[1:], beyond, strict=False) if before)
    assert all("clip_fraction" not in numbers for numbers in made.history if numbers["kl"] > limit)
    assert made.history[made.chosen]["kl"] <= limit


def test_the_error_of_the_kl_is_that_of_whole_replies() -> None:
    """0.4 a token: the first reply is 0.4 below that in its two tokens, the second 0.4 above in its one."""

    def numbers_of(rows: list[Row]) -> dict[str, float]:
        nothing = torch.zeros(3)
        divergences = torch.tensor([0.1, 0.3, 0.8])
        return Scored(rows, ["", ""], torch.ones(2) > 0, nothing[:2], nothing, nothing, divergences).numbers()

    numbers = numbers_of([((5,), (6, 7)), ((9,), (8,))])
    assert numbers["kl"] == pytest.approx(0.4) and numbers["kl_error"] == pytest.approx(0.4 * 2**0.5 / 3)
    alone = numbers_of([((5,), (6, 7)), ((5,), (8,))])  # with one prompt its replies are all that differs
    assert alone == numbers


@pytest.mark.long
def test_a_stronger_leash_keeps_the_policy_nearer() -> None:
    longer = NIGHT.model_copy(update={"ppo_iterations": 10})
    loose, tight = (trained(longer.model_copy(update={"ppo_beta": beta})).history[-1]["kl"] for beta in (0.0, 0.4))
    assert 0 < tight < 0.5 * loose


def test_texts_beside_the_reward_become_likelier() -> None:
    text: Row = ((5, 6), (20, 21, 22, 23))
    night = NIGHT.model_copy(update={"ppo_ptx_weight": 5.0})
    history = trained(night, ptx=[text]).history
    assert history[3]["ptx_loss"] < 0.7 * history[0]["ptx_loss"]


def test_a_reward_that_is_not_finite_aborts_the_training() -> None:
    with pytest.raises(TrainingAborted, match="reward is not finite"):
        trained(reward=lambda rows, texts: torch.full((len(rows),), float("nan")))


def test_no_prompt_is_refused() -> None:
    with attach_models(tiny_model(), NIGHT) as models, pytest.raises(NothingToLearn):
        train_policy(models, tiny_tokenizer(), [], evenness, (), NIGHT)


def test_a_reply_that_was_cut_returns_less_than_one_that_ended_by_the_penalty() -> None:
    """All rewards are 1 and nothing pulls back, so that a last token's return is 1, or 1 - 0.75 where it was cut."""
    night = NIGHT.model_copy(update={"ppo_cut_penalty": 0.75, "ppo_beta": 0.0})
    with attach_models(tiny_model(), night) as models:
        training = PolicyTraining(models, tiny_tokenizer(), lambda rows, texts: torch.ones(len(rows)), (), night)
        episodes, numbers, _ = training.collect(PROMPTS * 200)
    returned = {e.row[1][-1] == STOP: float(e.returns[-1]) for e in episodes}
    assert returned == {True: pytest.approx(1.0), False: pytest.approx(0.25)} and 0.5 < numbers["cut"] < 1


@pytest.mark.parametrize("budget", [1, 10_000])
def test_the_cut_into_micro_batches_changes_no_gradient(budget: int) -> None:
    rows: list[Row] = [((5, 6, 7), (8, 9)), ((5,), (10, 11, 12, 13)), ((9, 9), (3,))]
    generator = torch.Generator().manual_seed(0)
    gradients = []
    for used in (60, budget):
        with opened() as models:
            logps = by_token(models, rows, models.policy_logps)
            values = by_token(models, rows, models.values)
            generator.manual_seed(0)
            gained = torch.randn(len(logps), generator=generator)
            lengths = [2, 4, 1]
            parts = zip(rows, *(c.split(lengths) for c in (logps, values, gained, gained + values)), strict=True)
            accumulate_ppo_gradients(models, [Episode(*part) for part in parts], 0.2, used)
            learned = [p.grad for name in ("policy", "value") for p in models.adapters[name].parameters]
            gradients.append(torch.cat([g.flatten() for g in learned if g is not None]))
    torch.testing.assert_close(gradients[0], gradients[1])


def saved_reward() -> SavedReward:
    head = RewardHead(torch.randn(64, generator=torch.Generator().manual_seed(1)), 0.25)
    return SavedReward("reward-1", dict(start_adapter().tensors), 2, 4, head, "demonstrations")


def test_value_and_reward_begin_as_the_learned_reward_and_score_a_replys_end_alike() -> None:
    saved, row = saved_reward(), ((5, 6, 7), (8, 9, STOP))
    longer = (row[0], (*row[1], 11))  # its last token is predicted at the end of the row
    with attach_models(tiny_model(), NIGHT, reward=saved) as models:
        score = models.learned_reward(saved.head, STOP)([row], [""])
        values = by_token(models, [longer], models.values)
    torch.testing.assert_close(values[-1:], score)


def test_a_reply_that_was_cut_is_scored_as_if_it_ended_there() -> None:
    """A reward model has only seen replies that end."""
    saved = saved_reward()
    with attach_models(tiny_model(), NIGHT, reward=saved) as models:
        score = models.learned_reward(saved.head, STOP)
        cut, ended = score([((5, 6, 7), (8, 9))], [""]), score([((5, 6, 7), (8, 9, STOP))], [""])
    assert torch.equal(cut, ended)


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_a_groups_replies_are_held_against_each_other_and_no_value_is_learned(beta: float) -> None:
    """Every token: its reply's score and what the leash costs, less the mean of the other two."""
    night = NIGHT.model_copy(update={"ppo_group": 3, "ppo_beta": beta})
    start = start_adapter()
    with attach_models(tiny_model(), night, start) as models:
        assert set(models.adapters.loras) == {"policy", "reference"}
        models.adapters["policy"].load({name: 1.5 * tensor for name, tensor in start.tensors.items()})
        training = PolicyTraining(models, tiny_tokenizer(), evenness, (), night)
        episodes, numbers, _ = training.collect(PROMPTS)
        rows = [e.row for e in episodes]
        compared = by_token(models, rows, models.compared)
        in_policy = by_token(models, rows, models.policy_logps)
    torch.testing.assert_close(compared[:, 0], in_policy)
    known = compared.split([len(reply) for _, reply in rows])
    assert [prompt for prompt, _ in rows] == [prompt for prompt in PROMPTS for _ in range(3)] and numbers["kl"] != 0
    costs = [beta * training.unit * float((tokens[:, 0] - tokens[:, 1]).sum()) for tokens in known]
    scores = evenness(rows, [])
    expected: list[float] = []
    for number, tokens in enumerate(known):
        others = [other for other in range(number - number % 3, number - number % 3 + 3) if other != number]
        rest = costs[number] - sum(costs[other] for other in others) / 2
        expected += [float(scores[number] - scores[others].mean()) - rest] * len(tokens)
    found = torch.cat([e.advantages for e in episodes])
    torch.testing.assert_close(found, whiten(torch.tensor(expected)), atol=1e-4, rtol=1e-4)


def test_a_reward_of_the_prompt_alone_teaches_nothing() -> None:
    night = NIGHT.model_copy(update={"ppo_group": 3, "ppo_beta": 0.0})
    rewards = dict(zip(PROMPTS, (0.13, 0.23, 0.53), strict=True))
    with attach_models(tiny_model(), night) as models:
        by_prompt: Reward = lambda rows, texts: torch.tensor([rewards[prompt] for prompt, _ in rows])  # noqa: E731
        episodes, _, _ = PolicyTraining(models, tiny_tokenizer(), by_prompt, (), night).collect(PROMPTS)
    assert not torch.cat([e.advantages for e in episodes]).any()


@pytest.mark.long
def test_the_mean_reward_rises_with_groups_too() -> None:
    made = trained(NIGHT.model_copy(update={"ppo_iterations": 20, "ppo_group": 4, "ppo_prompts": 64, "ppo_beta": 0.05}))
    rewards = [numbers["reward"] for numbers in made.history]
    assert made.chosen > 0 and sum(rewards[-5:]) / 5 > sum(rewards[:2]) / 2 + 0.15
    assert all(numbers["value_loss"] == 0 for numbers in made.history[:-1])


@pytest.mark.parametrize("again", [False, True])
def test_replies_to_one_prompt_share_its_row_and_have_the_gradients_of_rows_of_their_own(
    again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Row] = [((5, 6, 7), (8, 9)), ((5, 6, 7), (10, 11, 12)), ((9, 9), (3,)), ((5, 6, 7), (4, 4))]
    rows += rows[:1] if again else []
    lengths = [len(completion) for _, completion in rows]
    gained = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(0))
    found = []
    for sharing in (ALONE, Sharing(1024, 1024)):
        monkeypatch.setattr("finetune.ppo.how_to_share", lambda model, sharing=sharing: sharing)
        monkeypatch.setattr("finetune.ppo_models.how_to_share", lambda model, sharing=sharing: sharing)
        with opened() as models:
            logps, values = (by_token(models, rows, compute) for compute in (models.policy_logps, models.values))
            parts = zip(rows, *(c.split(lengths) for c in (logps, values, gained, gained + values)), strict=True)
            accumulate_ppo_gradients(models, [Episode(*part) for part in parts], 0.2)
            learned = [p.grad for name in ("policy", "value") for p in models.adapters[name].parameters]
            found.append((logps, torch.cat([g.flatten() for g in learned if g is not None])))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)


def test_a_switch_is_one_assignment_and_gives_what_each_adapter_alone_gives() -> None:
    start, batch = start_adapter(), make_batch([((5, 6, 7), (8, 9))])
    model = tiny_model()
    head = model.get_output_embeddings()
    bare = batch_token_logps(model, batch)
    with attach_lora(model, head, rank=2, alpha=4, seed=0) as lora:
        lora.load(start.tensors)
        alone = batch_token_logps(model, batch).detach()
    with attach_adapters(model, head, {"one": (2, 4), "other": (8, 8)}, seed=0) as adapters:
        adapters["one"].load(start.tensors)
        found = []
        for name in ("one", "other", None, "one"):
            adapters.current = name
            found.append(batch_token_logps(model, batch).detach())
    assert torch.equal(found[0], alone) and torch.equal(found[3], alone)
    assert torch.equal(found[1], bare.detach()) and torch.equal(found[2], bare.detach())
    assert not torch.equal(alone, bare)


def test_replies_are_drawn_from_the_distribution_that_is_trained() -> None:
    """Of 4,000 first tokens each comes as often as the training forward says, within four standard errors."""
    model, prompt = tiny_model(), (5, 6, 7)
    drawn = sample_replies(model, [prompt] * 4000, STOP, 1, torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.tensor([rollout.row[1][0] for rollout in drawn]), minlength=304)
    tokens = range(304)
    shares = batch_token_logps(model, make_batch([(prompt, (token,)) for token in tokens])).detach().exp()
    errors = (shares * (1 - shares) * 4000).sqrt()
    likely = shares > 0.005
    assert ((counts - 4000 * shares).abs() < 4 * errors)[likely].all() and likely.sum() > 10


def test_replies_in_a_padded_batch_that_shrinks_are_those_of_each_prompt_alone() -> None:
    """With logits so far apart that nothing is left to chance; the token that ends a reply is one of the first's."""
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight *= 1000

    def sample(prompts: Sequence[tuple[int, ...]], stop: int) -> list[Rollout]:
        return sample_replies(model, prompts, stop, 8, torch.Generator().manual_seed(0))

    stop = sample(PROMPTS[:1], STOP)[0].row[1][2]
    alone = [sample([prompt], stop)[0] for prompt in PROMPTS]
    assert sample(PROMPTS, stop) == alone
    assert len({len(rollout.row[1]) for rollout in alone}) > 1
    assert all(r.ended == (r.row[1][-1] == stop) and stop not in r.row[1][:-1] for r in alone)


def test_prompts_are_computed_together_as_far_as_there_is_room_and_those_that_come_again_cost_nothing() -> None:
    short, other, long = (1, 2), (3, 4), (5,) * 9
    assert cut_prompts([short, short, other, short, long, long, other], 9) == [
        [short, short, other, short],
        [long, long],
        [other],
    ]
    assert cut_prompts([short] * 100, 2) == [[short] * 100] and cut_prompts([long, long], 1) == [[long, long]]


def test_replies_of_several_parts_come_in_the_order_of_their_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "ROOM", 4)
    found = sample_replies(tiny_model(), PROMPTS, STOP, 3, torch.Generator().manual_seed(0))
    assert [rollout.row[0] for rollout in found] == list(PROMPTS) and len(cut_prompts(PROMPTS, 4)) > 1


def test_every_prompt_is_used_once_before_any_is_used_twice() -> None:
    plan = plan_prompts(5, 4, 3, seed=0)
    assert [len(members) for members in plan] == [3, 3, 3, 3]
    flat = [i for members in plan for i in members]
    assert sorted(flat[:5]) == sorted(flat[5:10]) == [0, 1, 2, 3, 4]
