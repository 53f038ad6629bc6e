"""
Examples as what a model reads, and which of its outputs are scored. These definitions are ours.

- Masked language models: of each text's tokens (special ones apart), cut at `max_length`, a share is replaced by the
  mask token and scored. Which ones depends on the seed and the row's number alone, so all models of one tokenizer see
  the same masks and comparisons are paired.
- Causal language models: every token but the first is scored once. A text longer than the window is read in windows
  that overlap by half, and a token is scored in the first window that holds it.
- Classifiers: one label per example.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.features import LONGEST_TEXT, features
from ..errors import InputError
from .data import Examples


IGNORED = ("special_tokens_mask", "offset_mapping")
_PIXELS_IN_MEMORY = 1 << 30


@dataclass(frozen=True)
class Window:
    """
    One input of a model.

    Args:
        example (`int`): whose it is.
        inputs (`dict[str, np.ndarray]`): `[tokens]` each; empty for images, which are read when needed.
        positions (`np.ndarray`): the logits that are scored, `[scored]`; `None` where logits are per example.
        targets (`np.ndarray`): the tokens they should predict, `[scored]`.
    """

    example: int
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    positions: np.ndarray | None = None
    targets: np.ndarray | None = None

    @property
    def length(self) -> int:
        return max((len(values) for values in self.inputs.values()), default=1)


@dataclass(frozen=True)
class Encoded:
    """
    All examples as one processor gives them.

    Args:
        windows (`list[list[Window]]`): of each example.
        tokens (`np.ndarray`): `[examples]`, number of outputs scored.
        characters (`np.ndarray`): `[examples]`, number of characters that these stand for; NaN where undefined.
        pad (`dict[str, int]`): what short rows of each input are filled with.
        cut (`int`): how many texts fill the window: they were cut, unless they end there.
        images (`Tensor` or `Dataset`, *optional*): the pixels.
    """

    windows: list[list[Window]]
    tokens: np.ndarray
    characters: np.ndarray
    pad: dict[str, int] = field(default_factory=dict)
    cut: int = 0
    images: Any = None

    def take(self, rows: np.ndarray) -> Encoded:
        """The examples of these numbers, in this order."""
        windows = [
            [Window(new, window.inputs, window.positions, window.targets) for window in self.windows[old]]
            for new, old in enumerate(rows)
        ]
        images = self.images
        if images is not None:
            images = images[torch.as_tensor(rows)] if isinstance(images, Tensor) else images.select(rows)
        return Encoded(windows, self.tokens[rows], self.characters[rows], self.pad, self.cut, images)


def encode_images(examples: Examples, processor: Any) -> Encoded:
    """Pixels, one label each. Raises [`InputError`] if the processor does not fit."""
    pixels: Any = features(examples.inputs, processor)
    first = pixels[:1]["pixel_values"]
    if first.numel() * first.element_size() * len(pixels) <= _PIXELS_IN_MEMORY:
        pixels = pixels[:]["pixel_values"]
    ones = np.ones(len(examples))
    return Encoded([[Window(i)] for i in range(len(examples))], ones, ones * np.nan, images=pixels)


def encode_texts(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    *,
    max_length: int,
    mask_probability: float,
    seed: int,
) -> Encoded:
    """
    Tokens, and which are scored; see the head of this module.

    Args:
        examples (`Examples`): the texts.
        tokenizer (`PreTrainedTokenizerBase`): left as it is.
        task (`str`): `"fill-mask"`, `"text-generation"` or `"sequence-classification"`.
        max_length (`int`): most tokens in a window, special ones included.
        mask_probability (`float`): share of the tokens to mask; at least one of each text.
        seed (`int`): of the masks.

    Returns:
        `Encoded`: examples without a token to score have no window.
    """
    texts = examples.inputs["text"][:]
    # Truncation and padding are lasting settings of fast tokenizers, and others may use this one.
    tokenizer = copy.deepcopy(tokenizer)
    causal = task == "text-generation"
    encoded = tokenizer(
        texts,
        truncation=not causal,
        max_length=None if causal else max_length,
        padding=False,
        return_special_tokens_mask=True,
        return_offsets_mapping=tokenizer.is_fast,
        verbose=False,
    )
    rows = [{key: values[i] for key, values in encoded.items()} for i in range(len(texts))]
    pad = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
    if causal:
        for row in rows:
            # GPT-2 would add the first token's vector to every token.
            row.pop("token_type_ids", None)
        windows = [_causal_windows(i, _inputs(row), max_length) for i, row in enumerate(rows)]
        characters = [_characters_after_first(text, row) for text, row in zip(texts, rows, strict=True)]
        return Encoded(windows, _scored(windows), np.asarray(characters, dtype=np.float64), pad)
    cut = sum(len(row["input_ids"]) >= max_length for row in rows)
    nothing = np.full(len(texts), np.nan)
    if task == "sequence-classification":
        windows = [[Window(i, _inputs(row))] for i, row in enumerate(rows)]
        return Encoded(windows, np.ones(len(texts)), nothing, pad, cut)
    windows = []
    for i, row in enumerate(rows):
        window = _masked(i, row, tokenizer.mask_token_id, mask_probability, (seed, int(examples.index[i])))
        windows.append([] if window is None else [window])
    return Encoded(windows, _scored(windows), nothing, pad, cut)


def _inputs(row: dict[str, Sequence[int]]) -> dict[str, np.ndarray]:
    inputs = {key: np.asarray(values) for key, values in row.items() if key not in IGNORED}
    return {"attention_mask": np.ones_like(inputs["input_ids"]), **inputs}


def _scored(windows: list[list[Window]]) -> np.ndarray:
    return np.array([sum(len(window.targets) for window in of_one) for of_one in windows], dtype=np.float64)


def _masked(example: int, row: dict, mask_id: int, probability: float, seed: tuple[int, int]) -> Window | None:
    inputs = _inputs(row)
    maskable = np.flatnonzero(np.asarray(row["special_tokens_mask"]) == 0)
    if not len(maskable):
        return None
    number = max(1, round(probability * len(maskable)))
    positions = np.sort(np.random.default_rng(seed).choice(maskable, number, replace=False))
    targets = inputs["input_ids"][positions]
    inputs["input_ids"] = inputs["input_ids"].copy()
    inputs["input_ids"][positions] = mask_id
    return Window(example, inputs, positions, targets)


def _causal_windows(example: int, inputs: dict[str, np.ndarray], width: int) -> list[Window]:
    ids = inputs["input_ids"]
    windows, scored = [], 1
    stride = max(1, width // 2)
    for start in range(0, len(ids), stride):
        stop = min(start + width, len(ids))
        if stop > scored:
            part = {key: values[start:stop] for key, values in inputs.items()}
            # The logits of a position score the token after it.
            windows.append(Window(example, part, np.arange(scored, stop) - 1 - start, ids[scored:stop]))
            scored = stop
        if stop == len(ids):
            break
    return windows


def _characters_after_first(text: str, row: dict) -> float:
    """Characters that the scored tokens stand for: those after the first token, which nothing predicts."""
    offsets = row.get("offset_mapping")
    if not offsets:
        return float(len(text))
    return float(len(text) - offsets[0][1])


def tokens_at_most(longest: float, configs: Sequence[dict], given: int | None) -> int:
    """
    Tokens in a window that all these models can read.

    Args:
        longest (`float`): what their tokenizers allow.
        configs (`Sequence[dict]`): the models' configurations.
        given (`int`, *optional*): the most to take; 512 by default.

    Raises:
        [`InputError`]: `given` is below 3.
    """
    if given is not None and given < 3:
        raise InputError(f"max_length={given}: give at least 3 tokens.")
    limits = [given or LONGEST_TEXT, longest]
    for config in configs:
        positions = next((config[key] for key in _POSITIONS if isinstance(config.get(key), int)), None)
        if positions is not None and positions > 0:
            # RoBERTa and its kin count positions from after the padding token's id.
            kin = any(name in str(config.get("model_type")) for name in ("roberta", "camembert"))
            offset = (config.get("pad_token_id") or 0) + 1 if kin else 0
            limits.append(positions - offset)
    return int(min(limits))


_POSITIONS = ("n_positions", "max_position_embeddings", "max_seq_len")
