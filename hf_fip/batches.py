"""Task batches that a resumed run draws alike, and those of a path without a task."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments


class SeededByContent:
    """
    A collator whose randomness (masks) is a function of the batch. Loaders collate ahead of the step, so that the
    random state in a checkpoint is not the one the next batch was made with, and a resumed run would draw other masks.
    """

    def __init__(self, collate: Callable, seed: int):
        self.collate = collate
        self.seed = seed

    def __call__(self, rows: list) -> Any:
        tokens = [np.asarray(row["input_ids"]) for row in rows]
        # The generator takes no more than 32 bits of its seed.
        seed = zlib.crc32(np.concatenate(tokens).tobytes(), zlib.crc32(str(self.seed).encode()))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.collate(rows)


class EmptySteps(Dataset):
    """Stands in for the task data where there is no task: as many empty examples as the path's steps take."""

    def __init__(self, args: TrainingArguments):
        self.length = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"step": index}
