"""Causal language modelling: each token of a text is predicted from those before it."""

from __future__ import annotations

import copy
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerBase

from ..errors import InputError
from .masking import likelihoods


# What did best of the weights tried: with it a budget is mostly kept without restoring it, which costs the new texts.
WEIGHT_TIMES_BUDGET = 0.2
# Scored positions kept of each anchor where the user says nothing: with all of them, the cached outputs of 2,000
# anchors of 256 tokens would take 100 GB for GPT-2's vocabulary; with eight they take 3 GB (half in float16).
ANCHOR_POSITIONS = 8


class NextTokenCollator:
    """
    Pads texts to a batch, on the right, and labels every token with itself: models shift labels by one themselves.
    Transformers' own collator tells padding by the token, and so would leave out the ends of texts where a tokenizer
    without a padding token (GPT-2) pads with its end token; here only what was padded is left out.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): of the model; left as it is.

    Raises:
        [`InputError`]: the tokenizer has neither a padding nor an end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        tokenizer = copy.deepcopy(tokenizer)
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise InputError(
                    f"processing_class={type(tokenizer).__name__} has neither a pad_token nor an eos_token to pad "
                    "texts with; set tokenizer.pad_token"
                )
            tokenizer.pad_token = tokenizer.eos_token
        # Left padding, which some tokenizers of chat models ask for, would shift the positions of learned embeddings.
        tokenizer.padding_side = "right"
        self.pad = DataCollatorForTokenClassification(tokenizer)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return self.pad([row if "labels" in row else {**row, "labels": row["input_ids"]} for row in rows])


def causal_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """
    [`FIPConfig`] fields of a causal model's path, where the user leaves them out: the Kullback-Leibler divergence as
    the distance, a weight that fits a budget of it, and eight scored positions of each anchor. The divergence, in nats
    per token, is what the logarithm of the perplexity rises by where the reference predicts tokens as they are
    distributed. The squared distance of logits, most of which belong to words that never come, did worse on the old
    texts and on the new ones.

    Args:
        arguments (`dict`): The fields that were given.
    """
    defaults: dict[str, Any] = {"functional_distance": "kl", "anchor_positions": ANCHOR_POSITIONS}
    if arguments.get("distance_budget") and arguments.get("functional_distance", "kl") == "kl":
        defaults["beta"] = arguments["distance_budget"] / WEIGHT_TIMES_BUDGET
    return {**defaults, **arguments}


def next_token_rows(rows: Dataset) -> Dataset:
    """
    Tokenised texts as a causal model reads them: without token types, which GPT-2 would take for words, and without
    texts of a single token, in which nothing is predicted.

    Args:
        rows (`datasets.Dataset`): as [`~hf_fip.data.features.features`] makes them.
    """
    rows = rows.remove_columns([name for name in ("token_type_ids", "labels") if name in rows.column_names])
    return rows.filter(lambda batch: [len(ids) > 1 for ids in batch], batched=True, input_columns="input_ids")


def next_token_likelihoods(logits: Tensor, labels: Tensor) -> Tensor:
    """
    [`~hf_fip.data.masking.likelihoods`] of a causal model, whose output at a token scores the next one.

    Args:
        logits (`torch.Tensor`): `[batch, tokens, vocabulary]`.
        labels (`torch.Tensor`): `[batch, tokens]`: the tokens themselves, -100 where nothing is to be predicted.

    Returns:
        `torch.Tensor`: `[batch, 2]`: negative log-likelihood (nats) of all tokens but the first, and their number.
    """
    return likelihoods(logits[:, :-1], labels[:, 1:])
