"""Attention rollout: from which tokens a vision transformer's last features come."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def rollout(attention: Iterable[NDArray]) -> NDArray[np.float64]:
    """How much of each token of the input reaches each token of the last layer (Abnar and Zuidema, 2020, equation 1).

    A residual connection passes a token on beside the attention, so that of each layer A = (W + I) / 2 counts, with
    rows that sum to 1; the rollout is their product A_L ... A_1, and its rows sum to 1 too. It follows attention
    alone: what values, norms and the layers between do to a token, and for which class it speaks, it does not know.

    Args:
        attention: of each layer, first to last, the mean of its heads' weights W, float (N, T, T); its rows, the
            tokens that attend, sum to 1.

    Returns:
        float64 (N, T, T): row i, of the last layer's token i, over the tokens of the input.

    Raises:
        ValueError: there is no layer.
    """
    found: NDArray[np.float64] | None = None
    for weights in attention:
        passed = (np.asarray(weights, dtype=np.float64) + np.eye(weights.shape[-1])) / 2
        passed /= passed.sum(axis=-1, keepdims=True)
        found = passed if found is None else passed @ found
    if found is None:
        raise ValueError("attention: expected the weights of at least one layer, found none")
    return found
