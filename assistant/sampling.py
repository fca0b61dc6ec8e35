"""One token from logits: temperature, nucleus, seed."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from assistant.engine import Sampling

COLDEST = 1e-6
"""Below this the likeliest token is taken: logits over less overflow."""
LIKELY = 1e-4
"""Sorting the whole vocabulary costs milliseconds a token; the nucleus nearly always lies among those above this."""


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw the next token.

    Args:
        logits: (V,), any float dtype.
        sampling: temperature 0 takes the most likely token.
        generator: the reply's own, so that a seed fixes the reply whatever runs beside it.

    Source: of exponential waiting times with rates p, the first is token i's with probability p_i.
    """
    whole = logits.float()
    if sampling.temperature < COLDEST:
        return int(whole.numpy().argmax())  # torch takes fourteen times as long in bf16
    probabilities = (whole / sampling.temperature).softmax(-1).numpy()
    tokens = _nucleus(probabilities, sampling.top_p)
    # Each token runs its own race, in which chance is its own too: two that are nearly equal may change their ranks by
    # rounding, when others are in the batch, and whoever wins stays the same.
    race = int(torch.randint(2**63 - 1, (), generator=generator))
    pace = -np.log(_chances(race, tokens))
    return int(tokens[(probabilities[tokens] / pace).argmax()])


def _nucleus(probabilities: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Which tokens are the likeliest that make up `top_p` together, of all (V,)."""
    if top_p >= 1:
        return np.arange(probabilities.size)
    tokens = (probabilities > LIKELY).nonzero()[0]
    if probabilities[tokens].sum() < top_p:
        tokens = np.arange(probabilities.size)
    tokens = tokens[(-probabilities[tokens]).argsort(kind="stable")]
    sorted_ones = probabilities[tokens]
    inside: NDArray[np.int64] = tokens[sorted_ones.cumsum() - sorted_ones < top_p]
    return inside


def _chances(race: int, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in (0, 1) for each token, which only the race and the token decide.

    Source: the mixing of SplitMix64 (Steele, Lea and Flood 2014), which spares drawing for the whole vocabulary.
    """
    z = np.uint64(race) + (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
