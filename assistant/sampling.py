"""One token from logits: temperature, nucleus, seed."""

import torch
from torch import Tensor

from assistant.engine import Sampling

COLDEST = 1e-6
"""Below this the likeliest token is taken: logits over less overflow."""
CANDIDATES = 256
"""Sorting the whole vocabulary costs milliseconds a token; the nucleus nearly always lies among so many."""


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw the next token.

    Args:
        logits: (V,), any float dtype.
        sampling: temperature 0 takes the most likely token.
        generator: the reply's own, so that a seed fixes the reply whatever runs beside it.

    Source: of exponential waiting times with rates p, the first is token i's with probability p_i.
    """
    if sampling.temperature < COLDEST:
        return int(logits.float().numpy().argmax())  # torch takes fourteen times as long in bf16
    scaled = logits.float() / sampling.temperature
    probabilities, tokens = _nucleus(scaled, sampling.top_p)
    # Each token runs its own race, in which chance is its own too: two that are nearly equal may change their ranks by
    # rounding, when others are in the batch, and whoever wins stays the same.
    pace = -torch.rand(logits.numel(), generator=generator)[tokens].log()
    return int(tokens[(probabilities / pace).argmax()])


def _nucleus(scaled: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens that make up `top_p` together: their probabilities, and which they are."""
    if top_p >= 1:  # in any order: nobody is left out
        return scaled.softmax(-1), torch.arange(scaled.numel())
    top, tokens = scaled.topk(min(CANDIDATES, scaled.numel()))
    probabilities = (top - scaled.logsumexp(-1)).exp()
    if float(probabilities.sum()) < top_p:
        probabilities, tokens = scaled.softmax(-1).sort(descending=True)
    inside = probabilities.cumsum(0) - probabilities < top_p
    return probabilities[inside], tokens[inside]
