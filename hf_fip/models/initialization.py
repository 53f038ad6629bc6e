"""
Where a small BERT starts, so that little training is enough: what counting words can tell is written into its weights,
and its first layer begins by looking at each word's neighbours. From noise, masked language modelling first stays for
long at the loss of guessing frequent words; from here it does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from transformers import BertForMaskedLM


# Standard deviations of the entries of word and position vectors. Their sum is normalised, so only the ratio matters
# at first; beside AdamW's steps both are small enough to be learned on.
_WORD_SCALE = 0.05
_POSITION_SCALE = 0.03
# Attention logit of a neighbour in the heads that begin by looking at it.
_NEIGHBOUR_LOGIT = 6.0
_WINDOW = 5


@torch.no_grad()
def initialize_from_counts_(model: BertForMaskedLM, documents: Sequence[np.ndarray], seed: int = 0):
    """
    Prepare a fresh BERT for masked language modelling, in place.

    Three quarters of each input vector tell the word, as the SVD of its co-occurrences, and the rest the position, as
    sines and cosines; so positions do not blur words. The first two heads of the first layer attend to the word before
    and the word after. The output bias is the logarithm of the words' frequencies.

    Args:
        model (`BertForMaskedLM`): a model with random weights.
        documents (`Sequence[np.ndarray]`): token ids of the documents, each of shape `(tokens,)`.
        seed (`int`, *optional*, defaults to 0): seed of the randomised SVD.
    """
    config, embeddings = model.config, model.bert.embeddings
    frequencies = np.bincount(np.concatenate(documents), minlength=config.vocab_size) + 1.0
    model.cls.predictions.bias.copy_(torch.from_numpy(np.log(frequencies / frequencies.sum())))

    head_size = config.hidden_size // config.num_attention_heads
    position_size = 2 * (min(config.hidden_size // 4, head_size) // 2)
    word_size = config.hidden_size - position_size
    if not 0 < word_size < config.vocab_size or position_size == 0:
        return
    gap = np.full(_WINDOW, -1)
    stream = np.concatenate([np.append(ids, gap) for ids in documents])
    words = torch.from_numpy(count_vectors(stream, config.vocab_size, word_size, seed=seed)) * _WORD_SCALE
    words[config.pad_token_id] = 0
    embeddings.word_embeddings.weight.zero_()[:, :word_size] = words
    waves = 100.0 ** -(2 * torch.arange(position_size // 2) / position_size)
    angles = torch.arange(config.max_position_embeddings)[:, None] * waves
    positions = torch.cat([angles.sin(), angles.cos()], dim=1) * (_POSITION_SCALE * math.sqrt(2))
    embeddings.position_embeddings.weight.zero_()[:, word_size:] = positions
    embeddings.token_type_embeddings.weight.mul_(0.1)

    # What LayerNorm makes of the squared length of a position vector.
    variance = (word_size * _WORD_SCALE**2 + position_size * _POSITION_SCALE**2) / config.hidden_size
    squared_length = position_size * _POSITION_SCALE**2 / variance
    scale = math.sqrt(_NEIGHBOUR_LOGIT * math.sqrt(head_size) / squared_length)
    attention = model.bert.encoder.layer[0].attention.self
    for head, shift in zip(range(config.num_attention_heads), (-1, 1), strict=False):
        rows = slice(head * head_size, head * head_size + position_size)
        whole = slice(head * head_size, (head + 1) * head_size)
        for linear, matrix in (
            (attention.query, _rotation(waves * shift)),
            (attention.key, torch.eye(position_size)),
        ):
            linear.weight[whole] = 0
            linear.weight[rows, word_size:] = matrix * scale


def _rotation(angles: Tensor) -> Tensor:
    """Turns the sines and cosines of a position into those of a position further on: `[2 n, 2 n]` for `[n]` angles."""
    cosines, sines = angles.cos().diag(), angles.sin().diag()
    return torch.cat([torch.cat([cosines, sines], dim=1), torch.cat([-sines, cosines], dim=1)])


def count_vectors(token_ids: np.ndarray, vocab_size: int, size: int, *, seed: int = 0) -> np.ndarray:
    """
    Word vectors by truncated SVD of the positive pointwise mutual information of tokens that occur up to five tokens
    apart (Levy & Goldberg, *Neural Word Embedding as Implicit Matrix Factorization*, NIPS 2014).

    Args:
        token_ids (`np.ndarray` of shape `(tokens,)`): the documents in a row. Negative ids stand for no token.
        vocab_size (`int`): number of different tokens.
        size (`int`): length of a vector, smaller than `vocab_size`.
        seed (`int`, *optional*, defaults to 0): seed of the randomised SVD.

    Returns:
        `np.ndarray` of shape `(vocab_size, size)`: rows of standard deviation 1; random ones for tokens without
        neighbours.
    """
    left, singular_values = _truncated_svd(_mutual_information(token_ids, vocab_size), size, seed)
    # The square root of the singular values weighs the leading directions down, which suits word similarity better.
    vectors = left * np.sqrt(singular_values)
    lonely = vectors.std(axis=1) < 1e-8
    vectors[lonely] = np.random.default_rng(seed).standard_normal((int(lonely.sum()), size))
    return vectors / vectors.std(axis=1, keepdims=True)


def _mutual_information(token_ids: np.ndarray, vocab_size: int) -> sparse.csr_matrix:
    counts = sparse.csr_matrix((vocab_size, vocab_size))
    for distance in range(1, _WINDOW + 1):
        first, second = token_ids[:-distance], token_ids[distance:]
        known = (first >= 0) & (second >= 0)
        weight = np.full(int(known.sum()), (_WINDOW + 1 - distance) / _WINDOW)
        counts += sparse.coo_matrix((weight, (first[known], second[known])), shape=counts.shape).tocsr()
    counts = (counts + counts.T).tocoo()
    totals = np.asarray(counts.sum(axis=1)).ravel() + 1e-9
    # The power keeps rare contexts from having the largest mutual information with everything.
    contexts = totals**0.75
    values = np.log(counts.data * contexts.sum() / (totals[counts.row] * contexts[counts.col]))
    kept = values > 0
    return sparse.csr_matrix((values[kept], (counts.row[kept], counts.col[kept])), shape=counts.shape)


def _truncated_svd(matrix: sparse.csr_matrix, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors and singular values by subspace iteration (Halko et al. 2011, algorithm 4.4)."""
    start = np.random.default_rng(seed).standard_normal((matrix.shape[1], min(size + 10, matrix.shape[1])))
    basis, _ = np.linalg.qr(matrix @ start)
    for _ in range(4):
        basis, _ = np.linalg.qr(matrix @ (matrix.T @ basis))
    left, singular_values, _ = np.linalg.svd((matrix.T @ basis).T, full_matrices=False)
    return (basis @ left)[:, :size], singular_values[:size]
