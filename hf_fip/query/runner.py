"""Runs the models of a family on the examples, one after the other, while the next one's weights are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from .batches import Batch, Batches, first_rows
from .candidates import Candidate
from .encoding import Encoded
from .forward import Forward
from .labels import CannotScore
from .metrics import Head, Metric, row_losses
from .sharing import Processes
from .skeleton import Skeletons, Stored, read


Item = TypeVar("Item")
Read = TypeVar("Read")
_MOST_REFERENCE_BYTES = 4 << 30


def prefetched(items: Sequence[Item], read_one: Callable[[Item], Read]) -> Iterator[tuple[Item, Read]]:
    """Each item with what `read_one` makes of it, read in a thread while the one before is in use."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(read_one, items[0]) if items else None
        for place, item in enumerate(items):
            done = waiting.result()
            waiting = pool.submit(read_one, items[place + 1]) if place + 1 < len(items) else None
            yield item, done


class Runner:
    """
    Scores models on ranges of the examples.

    Args:
        candidates (`list[Candidate]`): the models, which [`Runner.score`] names by their number.
        encoded (`dict[str, Encoded]`): the examples as each of their processors gives them.
        weights (`dict[str, np.ndarray]`): for each processor `[examples]`, the examples' weights.
        metric (`Metric`): what is measured.
        truth (`Tensor`, *optional*): `[examples]`, the classes of the examples.
        processes (`Processes`): who shares the work.
        batch_size (`int`): rows of the longest batch.
        advance (`Callable[[int], Any]`): told the number of examples of each batch that is done.
    """

    def __init__(
        self,
        candidates: list[Candidate],
        encoded: dict[str, Encoded],
        weights: dict[str, np.ndarray],
        metric: Metric,
        truth: Tensor | None,
        processes: Processes,
        batch_size: int,
        advance: Callable[[int], Any],
    ) -> None:
        self.candidates = candidates
        self.encoded = encoded
        self.weights = weights
        self.metric = metric
        self.truth = truth
        self.processes = processes
        self.batch_size = batch_size
        self.advance = advance
        self.failed: dict[int, str] = {}
        self._skeletons = Skeletons(processes.device)
        self._forward = Forward(processes.device)
        self._reference: Tensor | None = None

    def score(self, models: Sequence[int], start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Losses and weights of these models on the examples from `start` to `stop`, `[models, stop - start]` each. Rows
        of models that turn out not to score are NaN, and their reasons are in `failed`.
        """
        loss = np.zeros((len(models), stop - start))
        weight = np.stack([self.weights[self.candidates[model].processor][start:stop] for model in models])
        batches = {
            key: Batches(self.encoded[key], start, stop, self.batch_size)
            for key in {self.candidates[model].processor for model in models}
        }
        failed: dict[int, str] = {}
        shared = self.processes.share(len(models))
        # Models of one architecture in a row, so that few model objects are alive at a time.
        for (place, part, parts), stored in prefetched(shared, lambda item: self._read(models[item[0]])):
            candidate = self.candidates[models[place]]
            try:
                if isinstance(stored, InputError):
                    raise stored
                model = self._skeletons.model(stored)
                of_model = batches[candidate.processor]
                for group in range(part, len(of_model), parts):
                    self._add_losses(model, of_model[group], candidate, loss[place], start)
                    self.advance(of_model.examples_in(group))
            except (CannotScore, InputError) as reason:
                failed[models[place]] = str(reason)
            except torch.OutOfMemoryError:
                raise
            except (IndexError, RuntimeError) as error:
                # Such as token numbers that the model has no vectors for.
                failed[models[place]] = f"fails on the data ({' '.join(str(error).split())[:200]})"
        loss = self.processes.total(loss)
        for reasons in self.processes.gathered(failed):
            self.failed |= reasons
        for place, model in enumerate(models):
            if model in self.failed:
                loss[place] = np.nan
        return loss, weight

    def refer_to(self, reference: Candidate) -> None:
        """
        Takes a node's outputs on all examples as those that the others' distances are to.

        Raises:
            [`InputError`]: they do not fit into memory, or the node cannot be run.
        """
        encoded = self.encoded[reference.processor]
        rows = int(first_rows(encoded)[-1])
        try:
            model = self._skeletons.model(read(reference.node))
        except CannotScore as reason:
            raise InputError(f"metric={self.metric.name!r}: node {reference.node.id!r} {reason}.") from None
        outputs: Tensor | None = None
        batches = Batches(encoded, 0, len(encoded.windows), self.batch_size)
        for group, batch in enumerate(batches):
            logits = self._forward(model, batch).cpu()
            if outputs is None:
                size = 4 * rows * logits.shape[-1]
                if size > _MOST_REFERENCE_BYTES:
                    raise InputError(
                        f"metric={self.metric.name!r} keeps {size / 2**30:.1f} GiB of outputs: give max_samples below "
                        f"{len(encoded.windows) * _MOST_REFERENCE_BYTES // size}."
                    )
                outputs = torch.empty(rows, logits.shape[-1])
            outputs[batch.rows] = logits
            self.advance(batches.examples_in(group))
        self._reference = outputs
        scale = float(self.metric.distance.scale(outputs))
        if not scale > 0:
            raise InputError(f"metric={self.metric.name!r}: the outputs of {reference.node.id!r} do not vary.")
        self.metric = replace(self.metric, scale=scale)

    def _read(self, model: int) -> Stored | InputError:
        try:
            return read(self.candidates[model].node)
        except InputError as error:
            return error
        except OSError as error:
            return InputError(f"its files cannot be had ({' '.join(str(error).split())[:200]})")

    @torch.inference_mode()
    def _add_losses(self, model: nn.Module, batch: Batch, candidate: Candidate, loss: np.ndarray, start: int) -> None:
        reference = None if self._reference is None else self._reference[batch.rows]
        logits = self._forward(model, batch)
        head = Head(candidate.labels, self.truth)
        rows, shares = row_losses(self.metric, logits, batch, head, reference)
        # Summed in float64: a sum of many float32 numbers would depend on their order.
        np.add.at(loss, (batch.examples - start).numpy(), (rows.cpu().double() * shares).numpy())
