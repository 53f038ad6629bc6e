"""Anchors: the inputs on which the function is kept, and the reference outputs on them, computed once and cached."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

from ..errors import InputError


logger = logging.get_logger(__name__)

IGNORED_LABEL = -100
GIB = 1024**3

Inputs = dict[str, Tensor]


def anchor_batch(
    num_anchors: int, batch_size: int, *, seed: int, step: int, part: int = 0, parts: int = 1
) -> list[int]:
    """
    The anchors of one micro-batch, as a pure function of its arguments: a resumed run, an accumulated one and one on
    several processes draw the same anchors as an uninterrupted one on a single process.

    Successive steps walk through random permutations of all anchors, so that each is used equally often.

    Args:
        num_anchors (`int`): Number of anchors.
        batch_size (`int`): Anchors per optimizer step over all processes (at most all of them are used).
        seed (`int`): Seed of the permutations.
        step (`int`): Optimizer step.
        part (`int`, *optional*, defaults to 0): Which micro-batch, counted over accumulation steps and processes.
        parts (`int`, *optional*, defaults to 1): Number of micro-batches that share the step's anchors.

    Returns:
        `list[int]`: indices into the anchors; the parts of one step are disjoint and differ by at most one in size.
    """
    size = min(batch_size, num_anchors)
    low, high = part * size // parts, (part + 1) * size // parts
    indices = []
    for position in range(step * size + low, step * size + high):
        turn, offset = divmod(position, num_anchors)
        indices.append(_permutation(num_anchors, seed, turn)[offset])
    return indices


@lru_cache(maxsize=8)
def _permutation(length: int, seed: int, turn: int) -> list[int]:
    return np.random.default_rng((seed, turn)).permutation(length).tolist()


def join_inputs(first: Inputs, second: Inputs, padding: dict[str, int]) -> Inputs:
    """
    Two collated batches as one, so that both go through the model in a single forward. Sequences are padded on the
    right to the longer batch's length; an attention mask is made where padding needs one.

    Args:
        first (`dict[str, torch.Tensor]`): Model inputs of the first batch (no labels).
        second (`dict[str, torch.Tensor]`): Model inputs of the second batch, same keys.
        padding (`dict[str, int]`): Padding value per key; keys not named are padded with 0.
    """
    differing = (first.keys() ^ second.keys()) - {"attention_mask"}
    if differing:
        raise InputError(
            f"anchor_dataset and train_dataset differ in the model inputs {sorted(differing)}; prepare both with the "
            "same processing_class and columns"
        )
    if "input_ids" in first and (
        "attention_mask" in first
        or "attention_mask" in second
        or first["input_ids"].shape[1] != second["input_ids"].shape[1]
    ):
        first, second = (
            batch if "attention_mask" in batch else {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
            for batch in (first, second)
        )
    joined = {}
    for key, value in first.items():
        other = second[key].to(value.device, non_blocking=True)
        if value.shape[1:] != other.shape[1:]:
            width = max(value.shape[1], other.shape[1])
            value, other = (
                torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=padding.get(key, 0))
                for rows in (value, other)
            )
        joined[key] = torch.cat([value, other])
    return joined


class Anchors:
    """
    A finite set of inputs, each collated once, with the reference network's outputs on them.

    Collating each example once fixes random masking and random augmentation, so that cached outputs stay right, and
    makes a training step's anchor batch a matter of indexing. For language models only the *scored* positions are
    kept: the masked tokens (masked language models), the labelled tokens (token classification), or every real token
    (causal language models).

    Args:
        dataset (map-style dataset):
            Examples the collator takes. Labels are optional.
        collate (`Callable`):
            The data collator of the run.
        per_token (`bool`, *optional*, defaults to `False`):
            Whether the model has one output per token (`[batch, tokens, vocabulary]`).
        padding (`dict[str, int]`, *optional*):
            Padding value per input key.
        shift_labels (`bool`, *optional*, defaults to `False`):
            Whether the output at a token predicts the next one (causal language models).
        mask_token_id (`int`, *optional*):
            The mask token, for masked language models.
        max_positions (`int`, *optional*):
            Largest number of scored positions kept per example (drawn at random); all by default.
        seed (`int`, *optional*, defaults to 0):
            Fixes masks, augmentation and the drawn positions; example i depends on (seed, i) alone.
        name (`str`, *optional*, defaults to `"anchor_dataset"`):
            How errors call the data set.
        tasks (sequence of `int`, *optional*):
            Which earlier task each example is of, 0 for the first that was learned; one task by default.
    """

    def __init__(
        self,
        dataset: Sequence[Any],
        collate: Callable[[list[Any]], Inputs],
        *,
        per_token: bool = False,
        padding: dict[str, int] | None = None,
        shift_labels: bool = False,
        mask_token_id: int | None = None,
        max_positions: int | None = None,
        seed: int = 0,
        name: str = "anchor_dataset",
        tasks: Sequence[int] | None = None,
    ):
        self.name = name
        self.tasks = [0] * len(dataset) if tasks is None else list(tasks)
        self.padding = {"labels": IGNORED_LABEL, **(padding or {})}
        examples = list(_collate_each(dataset, collate, seed))
        labels = [example.pop("labels", None) for example in examples]
        if not examples[0]:
            raise InputError(f"{name}: none of its columns is an input of the model; prepare it like train_dataset")
        self._inputs = {key: _store([example[key] for example in examples]) for key in examples[0]}
        self.labelled = all(label is not None for label in labels)
        self.positions: list[Tensor] | None = None
        if per_token:
            if self.labelled and shift_labels:
                labels = [torch.nn.functional.pad(label[1:], (0, 1), value=IGNORED_LABEL) for label in labels]
            self.positions = [
                _scored_positions(example, label, mask_token_id, max_positions, np.random.default_rng((seed, i)))
                for i, (example, label) in enumerate(zip(examples, labels, strict=True))
            ]
            if not any(len(positions) for positions in self.positions):
                raise InputError(f"{name}: no scored position in any example (every label is {IGNORED_LABEL})")
            if self.labelled:
                labels = [label[positions] for label, positions in zip(labels, self.positions, strict=True)]
        self._labels = labels if self.labelled else None
        self._reference: Tensor | None = None
        self._row_starts: list[int] | None = None

    def __len__(self) -> int:
        return len(next(iter(self._inputs.values())))

    @property
    def input_names(self) -> set[str]:
        """Names of the model inputs."""
        return set(self._inputs)

    @property
    def rows(self) -> int:
        """Output rows over all anchors: examples, or scored positions for models with one output per token."""
        return len(self) if self.positions is None else sum(len(positions) for positions in self.positions)

    @property
    def nbytes(self) -> int:
        """Bytes held: collated inputs and cached reference outputs."""
        inputs = sum(tensor.nbytes for values in self._inputs.values() for tensor in values)
        return inputs + (self._reference.nbytes if self._reference is not None else 0)

    def inputs(self, indices: Sequence[int]) -> Inputs:
        """Model inputs of the given anchors, padded to the longest of them."""
        return {key: _fetch(values, indices, self.padding.get(key, 0)) for key, values in self._inputs.items()}

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """Labels of the given anchors' output rows, or `None` for unlabelled anchors."""
        if self._labels is None:
            return None
        rows = [self._labels[i] for i in indices]
        return torch.stack(rows) if self.positions is None else torch.cat(rows)

    def select(self, outputs: Tensor, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """
        The rows of the model's outputs that count.

        Args:
            outputs (`torch.Tensor`): `[batch, …]`, or `[batch, tokens, vocabulary]` for models with an output per
            token. indices (sequence of `int`): Which anchors the batch holds.

        Returns:
            `tuple`: the outputs as they are and `None`, or `[positions, vocabulary]` and, for each row, the example of
            the batch it belongs to.
        """
        if self.positions is None:
            return outputs, None
        example_index = self.example_index(indices).to(outputs.device)
        token_index = torch.cat([self.positions[i] for i in indices]).to(outputs.device)
        return outputs[example_index, token_index], example_index

    def example_index(self, indices: Sequence[int]) -> Tensor | None:
        """For each output row of the given anchors, the place of its example; `None` where an example is a row."""
        if self.positions is None:
            return None
        counts = torch.tensor([len(self.positions[i]) for i in indices])
        return torch.repeat_interleave(torch.arange(len(counts)), counts)

    def reference(self, indices: Sequence[int]) -> Tensor:
        """Cached reference outputs of the given anchors, in the rows' order of [`~Anchors.select`]."""
        if self.positions is None:
            return self.all_reference[torch.as_tensor(indices, dtype=torch.long)]
        starts = self._row_starts
        return torch.cat([self.all_reference[starts[i] : starts[i + 1]] for i in indices])

    @property
    def all_reference(self) -> Tensor:
        """The whole cache, `[rows, outputs]`."""
        if self._reference is None:
            raise RuntimeError("no reference outputs yet: call remember() first")
        return self._reference

    def remember(self, reference: Tensor, *, dtype: torch.dtype = torch.float32, pin: bool = False) -> None:
        """
        Keeps `reference` (`[rows, outputs]`, all anchors in order) as the outputs to be preserved.

        Args:
            reference (`torch.Tensor`): Outputs of the reference network.
            dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Storage; distances are taken in float32.
            pin (`bool`, *optional*, defaults to `False`): Pinned memory, for faster copies to a GPU.

        Raises:
            [`InputError`]: if an output is NaN or infinite.
        """
        if not torch.isfinite(reference).all():
            raise InputError(
                f"{self.name}: the reference network's outputs hold NaN or infinite values; check the starting weights"
            )
        reference = reference.detach().to("cpu", dtype).contiguous()
        self._reference = reference.pin_memory() if pin else reference
        if self.positions is not None:
            counts = [len(positions) for positions in self.positions]
            self._row_starts = np.cumsum([0, *counts]).tolist()

    def amend(self, indices: Sequence[int], reference: Tensor) -> None:
        """
        Exchanges some of the reference's rows, for models with one row per example.

        Args:
            indices (sequence of `int`): Which anchors.
            reference (`torch.Tensor`): `[indices, outputs]`.
        """
        rows = torch.as_tensor(indices, dtype=torch.long)
        dtype = self.all_reference.dtype
        self.all_reference[rows] = reference.detach().cpu().clamp(min=torch.finfo(dtype).min).to(dtype)

    def check_size(self, outputs_per_row: int, *, bytes_per_value: int, limit_gb: float) -> None:
        """
        Says what the cache will take, before it is made.

        Raises:
            [`InputError`]: above the limit, naming the size, the limit and what makes it smaller.
        """
        size = self.rows * outputs_per_row * bytes_per_value + self.nbytes
        logger.info(
            f"{self.name}: {len(self):,} examples, {self.rows:,} output rows of {outputs_per_row:,} values: the cache "
            f"of inputs and reference outputs takes {size / GIB:.2f} GiB"
        )
        if size > limit_gb * GIB:
            advice = "fewer anchors, anchor_cache_dtype='float16'"
            if self.positions is not None:
                advice += ", fewer anchor_positions per example"
            raise InputError(
                f"{self.name}: the cache would take {size / GIB:.2f} GiB, above anchor_cache_limit_gb={limit_gb:g}; "
                f"use {advice}, or raise the limit"
            )


def _collate_each(dataset: Sequence[Any], collate: Callable[[list[Any]], Inputs], seed: int) -> Iterator[Inputs]:
    with _random_state_restored():
        for index in range(len(dataset)):
            random.seed(f"{seed}-{index}")
            np.random.seed([seed % 2**32, index])
            # Not torch.manual_seed, which would also seed the GPUs.
            torch.default_generator.manual_seed(random.getrandbits(63))
            batch = collate([dataset[index]])
            yield {key: value[0] for key, value in batch.items() if isinstance(value, Tensor)}


@contextmanager
def _random_state_restored():
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _scored_positions(
    example: Inputs, label: Tensor | None, mask_token_id: int | None, most: int | None, rng: np.random.Generator
) -> Tensor:
    tokens = example["input_ids"]
    if label is not None:
        scored = label != IGNORED_LABEL
    elif mask_token_id is not None and bool((tokens == mask_token_id).any()):
        scored = tokens == mask_token_id
    else:
        scored = example.get("attention_mask", torch.ones_like(tokens)).bool()
    positions = torch.nonzero(scored)[:, 0]
    if most is not None and len(positions) > most:
        positions = positions[torch.from_numpy(np.sort(rng.choice(len(positions), most, replace=False)))]
    return positions


def _store(values: list[Tensor]) -> Tensor | list[Tensor]:
    same_shape = all(value.shape == values[0].shape for value in values)
    return torch.stack(values) if same_shape else values


def _fetch(values: Tensor | list[Tensor], indices: Sequence[int], padding: int) -> Tensor:
    if isinstance(values, Tensor):
        return values[torch.as_tensor(indices, dtype=torch.long)]
    return pad_sequence([values[i] for i in indices], batch_first=True, padding_value=padding)
