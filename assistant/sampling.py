"""One token from logits: temperature, nucleus, seed."""

import torch
from torch import Tensor

from assistant.engine import Sampling

CANDIDATES = 256
"""Sorting the whole vocabulary costs milliseconds a token; the nucleus nearly always lies among so many."""


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw the next token.

    Args:
        logits: (V,), any float dtype.
        sampling: temperature 0 takes the most likely token.
        generator: the reply's own, so that a seed fixes the reply whatever runs beside it.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits.float() / sampling.temperature
    top, tokens = scaled.topk(min(CANDIDATES, scaled.numel()))
    probabilities = (top - scaled.logsumexp(-1)).exp()
    if float(probabilities.sum()) < sampling.top_p:
        probabilities, tokens = scaled.softmax(-1).sort(descending=True)
    before = probabilities.cumsum(0) - probabilities
    nucleus = probabilities * (before < sampling.top_p)
    return int(tokens[torch.multinomial(nucleus, 1, generator=generator)])
