"""Replies sampled on the training base, a whole batch at a time, from exactly the distribution that is trained.

Temperature 1 and the whole vocabulary: with any other, the probabilities that PPO compares would not be those that the
tokens were drawn from. Knows nothing of rewards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetune.batches import Row

ROOM = 16_384
"""Padded tokens of prompts that are computed at a time: 0.3 GB of attention scores of the embedded model."""


@dataclass(frozen=True)
class Rollout:
    """A prompt and a reply sampled to it."""

    row: Row
    ended: bool
    """Whether the reply ends its turn; otherwise it was cut at the token limit."""


@torch.no_grad()
def sample_replies(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    stop_id: int,
    max_new_tokens: int,
    generator: torch.Generator,
) -> list[Rollout]:
    """Sample a reply to each prompt, as many together as there is room for.

    Prompts are padded on the left; one that comes several times is computed once. Replies that ended leave the batch.

    Args:
        model: with the policy's adapter current.
        prompts: token ids, none empty.
        stop_id: ends a reply, and is its last token.
        max_new_tokens: longest reply.
        generator: on the model's device; the only source of chance.
    """
    return [
        rollout
        for together in cut_prompts(prompts, ROOM)
        for rollout in _sample_together(model, together, stop_id, max_new_tokens, generator)
    ]


def cut_prompts(prompts: Sequence[tuple[int, ...]], room: int) -> list[list[tuple[int, ...]]]:
    """Cut prompts, in their order, where the distinct ones of a part would take more padded tokens; one at least."""
    parts: list[list[tuple[int, ...]]] = []
    distinct: set[tuple[int, ...]] = set()
    for prompt in prompts:
        together = distinct | {prompt}
        if not parts or (prompt not in distinct and len(together) * max(map(len, together)) > room):
            parts.append([])
            together = {prompt}
        distinct = together
        parts[-1].append(prompt)
    return parts


def _sample_together(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    stop_id: int,
    max_new_tokens: int,
    generator: torch.Generator,
) -> list[Rollout]:
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    width = max(map(len, places))
    ids = torch.tensor([[stop_id] * (width - len(p)) + list(p) for p in places], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in places], device=model.device)
    repeated = torch.tensor([places[prompt] for prompt in prompts], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    replies: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    past = None
    for _ in range(max_new_tokens):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=torch.tensor([ids.shape[1] - 1]),  # 1 is a view, for which torch copies the head once a row
        )
        past = out.past_key_values
        logits = out.logits[:, -1]
        if len(logits) < len(going):  # the prompts, each once
            past.batch_select_indices(repeated)
            logits, mask, positions = logits[repeated], mask[repeated], positions[repeated]
        drawn = draw_tokens(logits, generator)
        for reply, token in zip(going, drawn[:, 0].tolist(), strict=True):
            replies[reply].append(token)
        kept = [place for place, reply in enumerate(going) if replies[reply][-1] != stop_id]
        if not kept:
            break
        if len(kept) < len(going):
            going = [going[place] for place in kept]
            past.batch_select_indices(torch.tensor(kept, device=model.device))
            mask, positions, drawn = mask[kept], positions[kept], drawn[kept]
        ids, positions = drawn, positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(drawn)], dim=1)
    return [
        Rollout((prompt, tuple(reply)), reply[-1] == stop_id) for prompt, reply in zip(prompts, replies, strict=True)
    ]


def draw_tokens(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a token from the softmax of each row: (B, V) to (B, 1).

    By inversion: one random number a row, where torch.multinomial takes one for each word of the vocabulary.
    """
    cumulative = logits.float().softmax(-1).cumsum(-1, dtype=torch.float64)
    points = torch.rand(len(logits), 1, dtype=torch.float64, device=logits.device, generator=generator)
    drawn = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True)
    return drawn.clamp(max=logits.shape[-1] - 1)
