"""PPO: replies are sampled, scored, and made likelier or less likely, on a KL leash to a reference.

    score(y) - β Σ_t log(π / ref)   is maximised, with   + γ_ptx · NLL of texts that shall stay likely

What a reply is held against is a learned value of its prompt and beginning, or, with `ppo_group` replies to each
prompt, what the others of its group got (RLOO). The latter needs no value model, and the group shares its prompt's row.

Numbered differences from InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, section 3.5 and appendix C.4):
1. Policy, reference, reward and value are adapters on one copy of the frozen base. The backward pass of one is over
   before the next is switched on, and no activation is recomputed.
2. β, the value clip and the penalty of cut replies are in units of the first replies' standard deviation, so that one
   setting fits a reward of any scale.
3. β rises where the KL comes near its limit, and training stops beyond it. What is kept is the policy whose replies
   had the best mean reward, cut ones punished, with a KL within the limit at the upper end of its 90 % interval; the
   start is one of them.
4. A reply that was cut at the token limit loses `ppo_cut_penalty`: a reward for replies says little of half a one, and
   rambling would be free.
5. No moving average of the weights.
6. A learned reward reads a cut reply as if it ended there, since it has learned from replies that end.
7. With groups, every token of a reply has its reply's sum of score and leash held against the others' (Ahmadian et al.
   2024). What early tokens paid is a baseline to late ones: log(π / ref) so far foretells the score.

The result is a function of (base, adapters, prompts, reward, settings, seed).
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from assistant.settings import NightSettings
from finetune.batches import Row, make_batch, micro_rows, plan_steps, share_rows, single_rows
from finetune.errors import NothingToLearn, TrainingAborted
from finetune.intervals import TO_AN_END
from finetune.lora import Lora
from finetune.ppo_losses import (
    adapt_beta,
    advantages,
    against_others,
    policy_losses,
    token_rewards,
    value_losses,
    whiten,
)
from finetune.ppo_models import Models, Reward, by_token, sample_scored
from finetune.progress import Progress, silent
from finetune.scoring import how_to_share, token_budget

CLIP, VALUE_CLIP = 0.2, 0.2
DECAY = 1.0
"""λ of the advantages. Replies are short and the value learns for tens of steps: below 1 the first tokens, far from the
reward, would rest on a value that knows nothing yet."""
MINIBATCH = 8
"""Replies of one optimiser step, in whole groups."""
WARM_UP = 3
"""Iterations until the learning rate is whole."""
KL_WANTED = 3 / 4
"""Share of the KL limit from which on β rises."""
RETURNS = 3
"""How often a policy that went beyond the limit is taken back, each time to learn at half the rate, before it ends."""
SHOWN = 3
"""Replies of an iteration that are kept to be read."""


@dataclass(frozen=True)
class Episode:
    """A scored reply, token by token; every tensor is (L,) on the CPU."""

    row: Row
    logps: Tensor
    values: Tensor
    """Zeros where no value is learned."""
    advantages: Tensor
    returns: Tensor
    """What the value learns, where one is."""


@dataclass(frozen=True)
class TrainedPolicy:
    """A finished training: the best policy within the limit."""

    tensors: dict[str, Tensor]
    """PEFT's names to float32 factors."""
    target_modules: list[str]
    chosen: int
    """The iteration whose replies it sampled; 0 is the start."""
    stopped: bool
    """Whether the KL passed its limit so often that training ended before the last iteration."""
    history: list[dict[str, float]]
    """One entry an iteration; the last was only measured."""
    samples: list[list[str]]
    """A few replies of each iteration."""
    seconds: float


class PolicyTraining:
    """One training: what it moves, and how.

    Args:
        models: of this training alone.
        tokenizer: reads the sampled tokens.
        reward: scores replies.
        ptx: rows whose completions shall stay likely; may be empty.
        night: the training settings.
    """

    def __init__(
        self,
        models: Models,
        tokenizer: PreTrainedTokenizerBase,
        reward: Reward,
        ptx: Sequence[Row],
        night: NightSettings,
    ) -> None:
        self.models, self.tokenizer, self.reward, self.night = models, tokenizer, reward, night
        self.ptx = random.Random(night.seed).sample(ptx, len(ptx))
        self.ptx_taken = 0
        self.beta = night.ppo_beta
        self.pace = 1.0  # the share of the learning rate
        self.unit = 0.0  # the first replies' standard deviation
        self.generator = torch.Generator(models.model.device).manual_seed(night.seed)
        self.policy = models.adapters["policy"].parameters
        self.value: list[nn.Parameter] = []
        if models.learn_value:
            self.value = [*models.adapters["value"].parameters, *models.value_head.parameters()]
        learned = [{"params": part} for part in (self.policy, self.value) if part]
        self.optimizer = torch.optim.AdamW(learned, weight_decay=0.0)

    def collect(self, asked: Sequence[tuple[int, ...]]) -> tuple[list[Episode], dict[str, float], list[str]]:
        """Sample and score the replies to each prompt.

        Returns:
            The episodes, what they tell of the policy, and a few of the texts.
        """
        models, night = self.models, self.night
        prompts = [prompt for prompt in asked for _ in range(night.ppo_group)]
        found = sample_scored(models, self.tokenizer, prompts, self.reward, night.ppo_reply_tokens, self.generator)
        _require_finite(float(found.scores.sum()), "reward")
        if not self.unit:
            self._begin(found.scores)
        judged = found.scores - night.ppo_cut_penalty * self.unit * ~found.ended
        numbers = {**found.numbers(), "judged": float(judged.mean()), "beta": self.beta}
        _require_finite(numbers["kl"], "KL")
        lengths = found.lengths
        rewards = token_rewards(judged, found.logps, found.reference_logps, lengths, self.beta * self.unit)
        if models.learn_value:
            values = by_token(models, found.rows, models.values)
            gained = advantages(rewards, values, lengths, DECAY)
        else:
            values = torch.zeros_like(rewards)
            whole = torch.stack([reply.sum() for reply in rewards.split(lengths)])
            gained = against_others(whole, night.ppo_group).repeat_interleave(torch.tensor(lengths))
        columns = (found.logps, values, whiten(gained), gained + values)
        parts = zip(found.rows, *(column.split(lengths) for column in columns), strict=True)
        return [Episode(*part) for part in parts], numbers, found.texts[:SHOWN]

    def learn(self, episodes: Sequence[Episode], iteration: int) -> dict[str, float]:
        """Take the optimiser steps of one iteration and return the means of their numbers."""
        for part in self.optimizer.param_groups:
            part["lr"] = self.pace * self.night.ppo_learning_rate * min(1.0, iteration / WARM_UP)
        group = self.night.ppo_group
        groups = [episodes[start : start + group] for start in range(0, len(episodes), group)]
        together = max(1, MINIBATCH // group)
        plan = plan_steps([self.night.ppo_epochs] * len(groups), together, self.night.seed + iteration)
        found = [self._step([episode for i in members for episode in groups[i]]) for members in plan]
        return {name: sum(numbers[name] for numbers in found) / len(found) for name in found[0]}

    def _begin(self, scores: Tensor) -> None:
        """Take the first replies' scores for the reward's scale and, where the value begins fresh, for its zero."""
        spread = float(scores.std(correction=0))
        self.unit = spread if spread > 0 else 1.0
        if "reward" not in self.models.adapters.loras:
            self.models.value_head.bias.data.fill_(float(scores.mean()))

    def _step(self, episodes: Sequence[Episode]) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        numbers = accumulate_ppo_gradients(self.models, episodes, VALUE_CLIP * self.unit)
        numbers["ptx_loss"] = self._add_ptx(len(episodes))
        for name, value in numbers.items():
            _require_finite(value, name.replace("_", " "))
        norm = float(nn.utils.clip_grad_norm_(self.policy, self.night.max_grad_norm))
        _require_finite(norm, "policy's gradient")
        if self.value:
            _require_finite(float(nn.utils.clip_grad_norm_(self.value, self.night.max_grad_norm)), "value's gradient")
        self.optimizer.step()
        _require_finite(float(nn.utils.get_total_norm([p.detach() for p in self.policy])), "adapter's weight")
        return numbers | {"grad_norm": norm}

    def _add_ptx(self, count: int) -> float:
        """Add the gradients of the next texts' NLL a token, as many texts as there are replies."""
        if not self.ptx:
            return 0.0
        count = min(count, len(self.ptx))
        rows = [self.ptx[(self.ptx_taken + n) % len(self.ptx)] for n in range(count)]
        self.ptx_taken += count
        tokens = sum(len(completion) for _, completion in rows)
        total = 0.0
        for part in micro_rows(rows, token_budget(self.models.model)):
            loss = -self.models.policy_logps(make_batch(part, self.models.model.device)).sum() / tokens
            (self.night.ppo_ptx_weight * loss).backward()
            total += float(loss.detach())
        return total


def train_policy(
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    reward: Reward,
    ptx: Sequence[Row],
    night: NightSettings,
    progress: Progress = silent,
) -> TrainedPolicy:
    """Train the policy.

    Args:
        models: from `attach_models`; the base and the reference stay as they are.
        tokenizer: gives the token that ends a reply, and reads replies.
        prompts: token ids; they are gone through in an order that the seed decides, again and again.
        reward: scores replies.
        ptx: rows whose completions shall stay likely; may be empty.
        night: the settings named ppo_, max_grad_norm and seed.
        progress: told after each iteration.

    Raises:
        NothingToLearn: there is no prompt.
        TrainingAborted: a score, loss, gradient or weight is not finite.
    """
    if not prompts:
        raise NothingToLearn("There is no prompt to reply to. Give a file with at least one.")
    started = time.monotonic()
    models.model.eval()
    training = PolicyTraining(models, tokenizer, reward, ptx, night)
    policy: Lora = models.adapters["policy"]
    history: list[dict[str, float]] = []
    samples: list[list[str]] = []
    best, tensors, chosen, returns, beyond = -math.inf, policy.tensors(), 0, 0, False
    asked = max(1, night.ppo_prompts // night.ppo_group)
    plan = plan_prompts(len(prompts), night.ppo_iterations + 1, asked, night.seed)
    for iteration, members in enumerate(plan):
        episodes, numbers, texts = training.collect([prompts[i] for i in members])
        samples.append(texts)
        within = numbers["kl"] + TO_AN_END * numbers["kl_error"] <= night.ppo_kl_limit
        if within and not beyond and numbers["judged"] > best:  # after one beyond, these are the chosen one's replies
            best, tensors, chosen = numbers["judged"], policy.tensors(), iteration
        beyond = numbers["kl"] > night.ppo_kl_limit
        if beyond:
            policy.load(tensors)
            training.pace /= 2
            returns += 1
        elif iteration < night.ppo_iterations:
            numbers |= training.learn(episodes, iteration + 1)
        history.append(numbers)
        progress("ppo", iteration + 1, len(plan), **numbers)
        if returns > RETURNS:
            break
        training.beta = adapt_beta(training.beta, numbers["kl"], KL_WANTED * night.ppo_kl_limit, night.ppo_beta)
    seconds = time.monotonic() - started
    stopped = len(history) < len(plan)
    return TrainedPolicy(tensors, policy.target_modules, chosen, stopped, history, samples, seconds)


def accumulate_ppo_gradients(
    models: Models, episodes: Sequence[Episode], value_clip: float, budget: int | None = None
) -> dict[str, float]:
    """Add the gradients of one step's losses of policy and value, micro-batch by micro-batch.

    Args:
        models: the policy learns, and the value where there is one.
        episodes: the step's.
        value_clip: in the units of the reward.
        budget: padded tokens of a micro-batch, which change no gradient; None is `scoring.token_budget`.

    Returns:
        The step's policy_loss and value_loss, and clip_fraction, means over its tokens.
    """
    tokens = sum(len(e.logps) for e in episodes)
    device = models.model.device
    sums = torch.zeros(3, device=device)
    by_row: dict[Row, list[Episode]] = {}
    for episode in episodes:
        by_row.setdefault(episode.row, []).append(episode)  # a reply may have been sampled twice
    shared = share_rows([e.row for e in episodes], how_to_share(models.model))
    for part in micro_rows(shared, budget or token_budget(models.model)):
        batch = make_batch(part, device)
        members = [by_row[row].pop() for row in single_rows(part)]
        old_logps, old_values, gained, returns = (
            torch.cat(parts).to(device)
            for parts in zip(*((e.logps, e.values, e.advantages, e.returns) for e in members), strict=True)
        )
        losses, clipped = policy_losses(models.policy_logps(batch), old_logps, gained, CLIP)
        (losses.sum() / tokens).backward()  # before the value's adapter is switched on
        misses = torch.zeros_like(losses)
        if models.learn_value:
            misses = value_losses(models.values(batch), old_values, returns, value_clip)
            (misses.sum() / tokens).backward()
        sums += torch.stack([losses.detach().sum(), misses.detach().sum(), clipped.sum()]) / tokens
    return dict(zip(("policy_loss", "value_loss", "clip_fraction"), sums.tolist(), strict=True))


def plan_prompts(count: int, iterations: int, size: int, seed: int) -> list[list[int]]:
    """List the prompt numbers of every iteration, all prompts once before any twice."""
    order = (i for step in plan_steps([-(-iterations * size // count)] * count, count, seed) for i in step)
    return [list(islice(order, size)) for _ in range(iterations)]


def _require_finite(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise TrainingAborted(
            f"PPO stopped: the {what} is not finite. Lower NIGHTSCHOOL_NIGHT__PPO_LEARNING_RATE, or train the reward "
            "model again."
        )
