"""Masked language modelling: which tokens are hidden, and how well they are found."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from ..functional.anchors import IGNORED_LABEL


MASK_PROBABILITY = 0.15


class MaskingCollator:
    """
    Pads texts to a batch and hides some of their tokens; rows that bring `labels`, as [`masked_once`] makes them, are
    left as they are.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): of the model.
        probability (`float`, *optional*, defaults to 0.15): share of the tokens to be predicted.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float = MASK_PROBABILITY):
        self.mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)
        self.pad = DataCollatorForTokenClassification(tokenizer)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return self.pad(rows) if "labels" in rows[0] else self.mask(rows)


def masked_once(rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Dataset:
    """
    Texts with fixed masks, so that every model is asked for the same words.

    Args:
        rows (`datasets.Dataset`): tokenised texts.
        tokenizer (`PreTrainedTokenizerBase`): of the model.
        seed (`int`): with a row's number, of its masks.

    Returns:
        `datasets.Dataset`: `input_ids` with masks and `labels`, -100 where nothing is to be predicted.
    """
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_PROBABILITY)

    def mask(row: dict[str, Any], index: int) -> dict[str, Any]:
        with torch.random.fork_rng(devices=[]):
            # The generator takes no more than 32 bits of its seed.
            torch.default_generator.manual_seed(zlib.crc32(f"{seed}-{index}".encode()))
            batch = collate([row])
        return {name: batch[name][0].tolist() for name in ("input_ids", "labels")}

    return rows.map(mask, with_indices=True, desc="Masking")


def likelihoods(logits: Tensor, labels: Tensor) -> Tensor:
    """
    What perplexity needs of a batch, so that the logits need not be kept.

    Args:
        logits (`torch.Tensor`): `[batch, tokens, vocabulary]`.
        labels (`torch.Tensor`): `[batch, tokens]`, -100 where nothing is to be predicted.

    Returns:
        `torch.Tensor`: `[batch, 2]`: negative log-likelihood (nats) of the labelled tokens, and their number.
    """
    rows = logits.flatten(0, 1).float()
    losses = cross_entropy(rows, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none").view_as(labels)
    return torch.stack([losses.sum(1), labels.ne(IGNORED_LABEL).sum(1)], dim=1)


def perplexity(prediction: EvalPrediction) -> dict[str, float]:
    """exp(negative log-likelihood per scored token) from the sums that [`likelihoods`] made; our definition."""
    total, tokens = prediction.predictions.astype("float64").sum(0)
    return {"perplexity": float(torch.tensor(total / tokens).exp()) if tokens else float("nan")}
