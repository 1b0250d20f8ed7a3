"""Attention rollout against the sum over all paths of attention, written out."""

import itertools

import numpy as np
import pytest

from deepfake.analysis.attribution import rollout


def attention(seed: int, images: int = 2, tokens: int = 3) -> np.ndarray:
    weights = np.random.default_rng(seed).random((images, tokens, tokens)).astype(np.float32)
    return weights / weights.sum(axis=-1, keepdims=True)


def test_it_is_the_sum_over_all_paths_through_the_layers() -> None:
    layers = [attention(seed) for seed in range(3)]
    found = rollout(layers)
    for image, last, first in itertools.product(range(2), range(3), range(3)):
        expected = 0.0
        for between in itertools.product(range(3), repeat=2):
            path = (last, *between, first)  # from the last layer down to the input
            step = 1.0
            for layer, (reads, read) in zip(layers[::-1], itertools.pairwise(path), strict=True):
                step *= (layer[image, reads, read] + (reads == read)) / 2
            expected += step
        assert found[image, last, first] == pytest.approx(expected)


def test_rows_sum_to_one() -> None:
    found = rollout(iter([attention(seed, tokens=7) for seed in range(12)]))
    assert found.dtype == np.float64
    assert found.sum(axis=-1) == pytest.approx(1)


def test_attention_that_stays_where_it_is_leads_nowhere_else() -> None:
    assert rollout([np.eye(4)[np.newaxis]] * 5).tolist() == [np.eye(4).tolist()]


def test_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer, found none"):
        rollout([])
