"""Log-probabilities of rows under a causal model: the one forward that training, reference and examination share.

Two shortcuts are taken where a model is known to allow them: the head is applied to completion positions only, and
the completions of one prompt share a row. Every other model runs its own forward over separate rows, whatever it
does with its logits and its attention: slower, and right.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.attention import MASKED
from finetune.batches import ALONE, Batch, Row, SharedRow, Sharing, make_batch, micro_rows
from finetune.losses import sum_by_row, token_logps

KNOWN_FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi3", "smollm3"}
"""Their logits are their head's output, and a mask and positions are all that order means to them; tested for each."""
CAPS = ("final_logit_softcapping", "attn_logit_softcapping")
CPU_TOKENS, GPU_TOKENS = 512, 1 << 15
"""Padded tokens of one micro-batch: on a CPU, where more brought no speed on two cores, and at most on a GPU."""


def is_known(model: PreTrainedModel) -> bool:
    """Whether the shortcuts hold for a model."""
    config = model.config.to_dict()
    return config["model_type"] in KNOWN_FAMILIES and not any(config.get(cap) for cap in CAPS)


def how_to_share(model: PreTrainedModel) -> Sharing:
    """Decide which completions may share a row: none of an unknown model, nor where a sliding window would cut.

    Nor those of more than 1,024 tokens together: their (heads, T, T) scores take memory for little. Measured on two
    cores, a step is 1.4 times as fast with 200 + 2 × 100 tokens in a row, 1.8 times with 300 + 4 × 120, but 1.3 times
    with 300 + 4 × 300, for 1.1 GB more.
    """
    if not is_known(model):
        return ALONE
    window = model.config.to_dict().get("sliding_window")
    return Sharing(MASKED, MASKED if window is None else window)


def token_budget(model: PreTrainedModel) -> int:
    """Give the padded tokens of one micro-batch: they bound the memory of activations, and change no gradient.

    On a GPU, which few tokens leave idle, as many as a quarter of its memory holds.
    """
    if model.device.type != "cuda":
        return CPU_TOKENS
    memory = torch.cuda.get_device_properties(model.device).total_memory
    return int(min(max(memory / 4 / token_bytes(model), CPU_TOKENS), GPU_TOKENS))


def token_bytes(model: PreTrainedModel) -> int:
    """Estimate what a token keeps for the backward pass.

    About 16 vectors of the hidden and 5 of the intermediate size in each layer; and where the shortcut of the head does
    not hold, its logits and their gradients.
    """
    config = model.config.get_text_config()
    hidden = config.hidden_size
    inner = config.to_dict().get("intermediate_size") or 4 * hidden
    kept = (16 * hidden + 5 * inner) * config.num_hidden_layers * model.dtype.itemsize
    return int(kept + (0 if is_known(model) else 20 * config.vocab_size))


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Compute the last layer's hidden states of a batch: (R, T, H)."""
    hidden: Tensor = model.base_model(**batch.inputs(), use_cache=False).last_hidden_state
    return hidden


def predictions(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, nn.Module]:
    """Compute what predicts every completion token of a batch.

    Returns:
        (N, H) hidden states in the order of batch.targets and the head that makes logits of them, or (N, V) logits and
        what leaves them as they are.
    """
    if is_known(model):
        return hidden_states(model, batch)[batch.rows, batch.columns], model.get_output_embeddings()
    first = int(batch.columns.min())
    kept = batch.input_ids.shape[1] - first
    logits = model(**batch.inputs(), use_cache=False, logits_to_keep=kept).logits  # (R, kept, V)
    return logits[batch.rows, batch.columns - first], nn.Identity()


def batch_token_logps(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Compute the log-probability of every completion token of a batch.

    Args:
        model: any causal language model.
        batch: R rows of T tokens.

    Returns:
        (N,) float32, in the order of batch.targets.
    """
    states, head = predictions(model, batch)
    if isinstance(head, nn.Identity):
        return states.float().log_softmax(dim=-1).gather(1, batch.targets[:, None])[:, 0]
    return token_logps(states, head, batch.targets)


def row_logps(model: PreTrainedModel, rows: Sequence[Row]) -> list[float]:
    """Compute the summed log-probability of each row's completion, as `completion_logps` does."""
    return [logps[0] for logps in completion_logps(model, rows)]


@torch.no_grad()
def completion_logps(model: PreTrainedModel, rows: Sequence[SharedRow]) -> list[list[float]]:
    """Compute the summed log-probability of each completion of every row.

    On a CPU each row runs alone and unpadded: its values are then a function of its tokens only, not of its neighbours,
    which is what makes them worth keeping, and equal adapters exactly equal. On a GPU, which one row leaves idle, rows
    run together, and a value's last bits depend on its batch.
    """
    if model.device.type == "cuda":
        return _batched_completion_logps(model, rows, token_budget(model))
    return [_batched_completion_logps(model, [row], 0)[0] for row in rows]


def _batched_completion_logps(model: PreTrainedModel, rows: Sequence[SharedRow], budget: int) -> list[list[float]]:
    found: dict[SharedRow, list[float]] = {}
    for part in micro_rows(list(dict.fromkeys(rows)), budget):
        batch = make_batch(part, model.device)
        counts = [len(row) - 1 for row in part]
        sums = sum_by_row(batch_token_logps(model, batch).double(), batch.completion, sum(counts))
        found |= zip(part, (of_row.tolist() for of_row in sums.split(counts)), strict=True)
    return [found[row] for row in rows]
