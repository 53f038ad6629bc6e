"""Word vectors from counts: where a small masked language model starts, instead of learning them from nothing."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def count_vectors(token_ids: np.ndarray, vocab_size: int, size: int, *, window: int = 5, seed: int = 0) -> np.ndarray:
    """
    Vectors of the tokens of a text by truncated SVD of the positive pointwise mutual information of tokens that occur
    near each other (Levy & Goldberg, *Neural Word Embedding as Implicit Matrix Factorization*, NIPS 2014).

    Args:
        token_ids (`np.ndarray` of shape `(tokens,)`): the documents in a row. Negative ids stand for no token.
        vocab_size (`int`): number of different tokens.
        size (`int`): length of a vector, smaller than `vocab_size`.
        window (`int`, *optional*, defaults to 5): how many tokens apart still counts as near; nearer ones weigh more.
        seed (`int`, *optional*, defaults to 0): seed of the randomised SVD.

    Returns:
        `np.ndarray` of shape `(vocab_size, size)`: rows of standard deviation 1; random ones for tokens without
        neighbours.
    """
    left, singular_values = _truncated_svd(_mutual_information(token_ids, vocab_size, window), size, seed)
    # The square root of the singular values weighs the leading directions down, which suits word similarity better.
    vectors = left * np.sqrt(singular_values)
    generator = np.random.default_rng(seed)
    lonely = vectors.std(axis=1) < 1e-8
    vectors[lonely] = generator.standard_normal((int(lonely.sum()), size))
    return vectors / vectors.std(axis=1, keepdims=True)


def _mutual_information(token_ids: np.ndarray, vocab_size: int, window: int) -> sparse.csr_matrix:
    counts = sparse.csr_matrix((vocab_size, vocab_size))
    for distance in range(1, window + 1):
        first, second = token_ids[:-distance], token_ids[distance:]
        known = (first >= 0) & (second >= 0)
        weight = np.full(int(known.sum()), (window + 1 - distance) / window)
        counts += sparse.coo_matrix((weight, (first[known], second[known])), shape=counts.shape).tocsr()
    counts = (counts + counts.T).tocoo()
    totals = np.asarray(counts.sum(axis=1)).ravel() + 1e-9
    # The power keeps rare contexts from having the largest mutual information with everything.
    contexts = totals**0.75
    values = np.log(counts.data * contexts.sum() / (totals[counts.row] * contexts[counts.col]))
    kept = values > 0
    return sparse.csr_matrix((values[kept], (counts.row[kept], counts.col[kept])), shape=counts.shape)


def _truncated_svd(
    matrix: sparse.csr_matrix, size: int, seed: int, iterations: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors and singular values by subspace iteration (Halko et al. 2011, algorithm 4.4)."""
    start = np.random.default_rng(seed).standard_normal((matrix.shape[1], min(size + 10, matrix.shape[1])))
    basis, _ = np.linalg.qr(matrix @ start)
    for _ in range(iterations):
        basis, _ = np.linalg.qr(matrix @ (matrix.T @ basis))
    left, singular_values, _ = np.linalg.svd((matrix.T @ basis).T, full_matrices=False)
    return (basis @ left)[:, :size], singular_values[:size]
