from collections.abc import Sequence

import numpy as np


def stratified_indices(labels: Sequence[int], size: int, seed: int = 0) -> np.ndarray:
    """
    Draws a sample in which every label has its share, to within one row.

    Args:
        labels (`Sequence[int]`): `[rows]`, the label of each row; all equal where there are none.
        size (`int`): rows wanted; all of them if there are no more.
        seed (`int`, *optional*, defaults to 0): of the draw.

    Returns:
        `np.ndarray`: `[min(size, rows)]` row numbers in ascending order.
    """
    labels = np.asarray(labels)
    rows = len(labels)
    if size >= rows:
        return np.arange(rows)
    values, counts = np.unique(labels, return_counts=True)
    exact = size * counts / rows
    shares = np.floor(exact).astype(int)
    largest_remainders = np.argsort(shares - exact, kind="stable")[: size - shares.sum()]
    shares[largest_remainders] += 1
    rng = np.random.default_rng(seed)
    drawn = [
        rng.permutation(np.flatnonzero(labels == value))[:share] for value, share in zip(values, shares, strict=True)
    ]
    return np.sort(np.concatenate(drawn))
