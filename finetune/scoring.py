"""Log-probabilities of rows under a causal model: the one forward that training, reference and examination share."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetune.batches import Batch, Row, make_batch
from finetune.errors import FinetuneError
from finetune.losses import token_logps


def batch_token_logps(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Compute the log-probability of every completion token of a batch.

    Args:
        model: any causal language model whose logits are its head's output.
        batch: R rows of T tokens.

    Returns:
        (N,) float32, in the order of batch.targets.

    Raises:
        FinetuneError: the model caps its logits; leaving the cap out would train on other probabilities
            than it answers with.
    """
    if model.config.to_dict().get("final_logit_softcapping"):
        raise FinetuneError("Models that cap their logits cannot be trained here yet. Choose another model.")
    hidden = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # (R, T, H)
    return token_logps(hidden[batch.rows, batch.columns], model.get_output_embeddings(), batch.targets)


@torch.no_grad()
def row_logps(model: PreTrainedModel, rows: Sequence[Row]) -> list[float]:
    """Compute the summed log-probability of each row's completion.

    Each row runs alone and unpadded: its value is then a function of its tokens only, not of its
    neighbours, which is what makes it worth keeping, and equal adapters exactly equal.
    """
    return [float(batch_token_logps(model, make_batch([row], model.device)).double().sum()) for row in rows]
