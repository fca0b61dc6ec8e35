"""The models of PPO on one base, and replies that are sampled and scored with them.

Policy, reference, reward and value are adapters on one copy of the frozen base; the reference is the start adapter,
or the bare base. Knows nothing of how the policy learns.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from assistant.prompt import end_of_turn
from assistant.settings import NightSettings
from finetune.batches import Batch, Row, make_batch, micro_rows, share_rows, single_rows
from finetune.lora import Adapters, attach_adapters
from finetune.ppo_losses import compare_tokens
from finetune.reward import RewardHead, RewardModel
from finetune.reward_folder import SavedReward
from finetune.rollouts import Rollout, sample_replies
from finetune.scoring import batch_token_logps, hidden_states, how_to_share, predictions, token_budget

Reward = Callable[[Sequence[Row], Sequence[str]], Tensor]
"""Rows and their replies' texts to (R,) scores."""


@dataclass(frozen=True)
class StartAdapter:
    """Where the policy begins, and what the leash is fixed to."""

    tensors: Mapping[str, Tensor]
    """PEFT's names to factors."""
    rank: int
    alpha: int


@dataclass(frozen=True)
class Models:
    """The models of PPO: adapters on one base, and the value's head."""

    model: PreTrainedModel
    adapters: Adapters
    """`policy`; `value` and `reward` where they are learned; `reference` unless that is the bare base."""
    value_head: nn.Linear
    """(1, H) float32."""

    @property
    def learn_value(self) -> bool:
        """Whether a value is learned beside the policy."""
        return "value" in self.adapters.loras

    def policy_logps(self, batch: Batch) -> Tensor:
        """Compute the log-probability of each completion token under the policy: (N,)."""
        self.adapters.current = "policy"
        return batch_token_logps(self.model, batch)

    def compared(self, batch: Batch) -> Tensor:
        """Compare policy and reference at each completion token: (N, 3), see `compare_tokens`."""
        self.adapters.current = "policy"
        policy, head = predictions(self.model, batch)
        self.adapters.current = "reference" if "reference" in self.adapters.loras else None
        reference, _ = predictions(self.model, batch)
        return compare_tokens(policy, reference, head, batch.targets)

    def values(self, batch: Batch) -> Tensor:
        """Compute the expected reward before each completion token: (N,) float32."""
        self.adapters.current = "value"
        hidden = hidden_states(self.model, batch)[batch.rows, batch.columns]
        values: Tensor = self.value_head(hidden.float())[:, 0]
        return values

    def learned_reward(self, head: RewardHead, stop_id: int) -> Reward:
        """Score with the adapter `reward`, which has learned from replies that end: one that was cut is ended."""
        head = replace(head, weight=head.weight.to(self.model.device))

        def score(rows: Sequence[Row], texts: Sequence[str]) -> Tensor:
            self.adapters.current = "reward"
            ended = [(prompt, reply if reply[-1] == stop_id else (*reply, stop_id)) for prompt, reply in rows]
            return RewardModel(self.model, head).rewards(ended)

        return score


@contextmanager
def attach_models(
    model: PreTrainedModel, night: NightSettings, start: StartAdapter | None = None, reward: SavedReward | None = None
) -> Iterator[Models]:
    """Give a base PPO's adapters, inside the block; afterwards it is as before.

    Args:
        model: the base.
        night: rank and alpha of what begins fresh, the seed, and ppo_group: whether a value is learned.
        start: what policy and reference begin as; None is the bare base.
        reward: a learned reward, which the value begins as; None where the reward is computed otherwise.
    """
    fresh = (night.rank, night.alpha)
    begun = fresh if start is None else (start.rank, start.alpha)
    scored = fresh if reward is None else (reward.rank, reward.alpha)
    sizes = {"policy": begun}
    sizes |= {"value": scored} if night.ppo_group == 1 else {}
    sizes |= {"reference": begun} if start else {}
    sizes |= {"reward": scored} if reward else {}
    head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=model.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    with attach_adapters(model, model.get_output_embeddings(), sizes, night.seed) as adapters:
        if start is not None:
            adapters["policy"].load(start.tensors)
            adapters["reference"].load(start.tensors)
        if reward is not None:
            adapters["reward"].load(reward.tensors)
            if "value" in sizes:
                adapters["value"].load(reward.tensors)
            head.weight.data[0] = reward.head.weight
            head.bias.data[0] = reward.head.bias
        yield Models(model, adapters, head)


def reply_room(night: NightSettings) -> int:
    """Give the tokens that a reply needs beside its prompt: its own, and the one that ends a cut one for its score."""
    return night.ppo_reply_tokens + 1


@dataclass(frozen=True)
class Scored:
    """Replies of the policy, N tokens in all, in the order of the prompts. Tensors are on the CPU."""

    rows: list[Row]
    texts: list[str]
    ended: Tensor
    """(R,) bool: whether a reply ends its turn, or was cut at the token limit."""
    scores: Tensor
    """(R,) float32."""
    logps: Tensor
    """(N,) under the policy."""
    reference_logps: Tensor
    """(N,)"""
    divergences: Tensor
    """(N,) KL of the policy's next token from the reference's, nats."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each reply."""
        return [len(completion) for _, completion in self.rows]

    def numbers(self) -> dict[str, float]:
        """Say what the replies tell of the policy; KL, its standard error and entropy are estimates in nats a token."""
        tokens = self.divergences.double()
        kl = float(tokens.mean())
        alone = len({prompt for prompt, _ in self.rows}) == 1
        apart: dict[object, float] = {}  # replies to one prompt are no independent ones, unless all are
        for row, reply in zip(self.rows, tokens.split(self.lengths), strict=True):
            told_by = row if alone else row[0]
            apart[told_by] = apart.get(told_by, 0.0) + float((reply - kl).sum())
        return {
            "reward": float(self.scores.mean()),
            "kl": kl,
            "kl_error": math.hypot(*apart.values()) / len(tokens),
            "entropy": float(-self.logps.mean()),
            "length": sum(self.lengths) / len(self.rows),
            "cut": float((~self.ended).float().mean()),
        }


def sample_scored(
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    reward: Reward,
    max_new_tokens: int,
    generator: torch.Generator,
) -> Scored:
    """Sample and score a reply of the policy to each prompt.

    Args:
        models: the policy's adapter is made current.
        tokenizer: gives the token that ends a reply, and reads replies.
        prompts: token ids.
        reward: scores replies.
        max_new_tokens: longest reply.
        generator: on the model's device.
    """
    models.adapters.current = "policy"
    rollouts = sample_replies(models.model, prompts, end_of_turn(tokenizer), max_new_tokens, generator)
    rows = [rollout.row for rollout in rollouts]
    texts = [_text(tokenizer, rollout) for rollout in rollouts]
    return Scored(
        rows,
        texts,
        torch.tensor([rollout.ended for rollout in rollouts]),
        reward(rows, texts).float().cpu(),
        *by_token(models, rows, models.compared).unbind(dim=1),
    )


@torch.no_grad()
def by_token(models: Models, rows: Sequence[Row], compute: Callable[[Batch], Tensor]) -> Tensor:
    """Compute a number, or several, for each completion token of every row, in their order: (N, …) on the CPU."""
    found: dict[Row, Tensor] = {}
    shared = share_rows(list(dict.fromkeys(rows)), how_to_share(models.model))
    for part in micro_rows(shared, token_budget(models.model)):
        numbers = compute(make_batch(part, models.model.device)).cpu()
        single = single_rows(part)
        found |= zip(single, numbers.split([len(completion) for _, completion in single]), strict=True)
    return torch.cat([found[row] for row in rows])


def _text(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> str:
    ids = rollout.row[1][:-1] if rollout.ended else rollout.row[1]
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
