"""Keeping the function: references in a running trainer, drift, restoration, certificates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers.utils import logging

from .collecting import CALIBRATION_CONFIDENCE, check_inputs, collect, split_held_out
from .data.sampling import stratified_indices
from .errors import InputError
from .forward import OutputKind, function_mode_, logits_of
from .functional.anchors import Anchors, anchor_batch, join_inputs
from .functional.budget import Drift, predictions_changed
from .functional.penalty import AnchorLabels, AnchorPredictions, FunctionalDistance, mean_by_example
from .functional.task_nodes import within
from .starting_network import EXAMPLE_COLUMN
from .terms import OutputBatch, Step, Term, total_loss


if TYPE_CHECKING:
    from .graph import Node
    from .trainer import FIPTrainer

logger = logging.get_logger(__name__)

RESTORATION_LEARNING_RATE = 0.3
# Restoration draws its anchors from a stream of its own, so that it does not shift the training batches.
RESTORATION_STREAM = 7919
# Inputs of the new task on which restoration keeps what was gained.
GAINED_INPUTS = 512
# These, and the anchors on which edges are measured, are as many as keep their outputs below 64 MiB.
AFFORDABLE_VALUES = 2**24


class Preservation:
    """
    What a trainer does to keep the function on its anchors.

    Args:
        trainer (`FIPTrainer`): The trainer, whose model holds the reference weights now.
    """

    def __init__(self, trainer: FIPTrainer):
        self.trainer = trainer
        self.args = trainer.args
        self.anchors = collect(trainer, trainer.anchor_dataset, "anchor_dataset")
        heldout, calibrating = split_held_out(trainer.heldout_dataset, self.args, seed=trainer.data_seed)
        self.heldout = collect(trainer, heldout, "heldout_dataset")
        self.calibrating = collect(trainer, calibrating, "heldout_dataset")
        self._gained: Anchors | None = None
        self.distance: FunctionalDistance | None = None
        if self.anchors is None:
            return
        check_inputs(trainer, self.anchors)
        self.refer()
        reference = self.anchors.all_reference
        self._affordable = max(1, AFFORDABLE_VALUES * len(self.anchors) // reference.numel())
        self._edge_indices = range(min(len(self.anchors), self._affordable))
        self.last_point = self.anchors.reference(self._edge_indices).float()
        self.root: Tensor | None = self.last_point
        # Tables [tasks, outputs] of the nodes that answer for a task: of the network, and of the reference.
        self._nodes: Tensor | None = trainer.node_table
        self._reference_nodes = self._nodes
        if trainer.references:
            self._refer_to(trainer.references)
            self.root = self.anchors.reference(self._edge_indices).float()
        elif trainer.known_outputs is not None:
            tasks = max(max(inputs.tasks) for inputs in (self.anchors, *self.unseen.values()))
            self._know([trainer.known_outputs] * (1 + tasks))
        distance = self.args.distance
        unit = float(distance.scale(reference))
        if not unit > 0:
            raise InputError(
                f"anchor_dataset: {len(self.anchors)} anchors on which the outputs do not vary give the distance no "
                "unit; use more and different anchors (at least 2)"
            )
        # A class that is new to a head that has grown has to be kept away from the anchors.
        grown = trainer.is_classifier and self.args.solver == "penalty" and self._lacks_nodes()
        weight = self.args.anchor_prediction_weight
        self._predictions = [AnchorPredictions(weight)] if grown and weight else []
        weight = self.args.distance_weight(with_predictions=bool(self._predictions))
        self.distance = FunctionalDistance(distance, unit=unit, weight=weight)

    def terms(self) -> list[Term]:
        """The terms that keep the function."""
        if self.distance is None:
            return []
        terms: list[Term] = [self.distance, *self._predictions]
        if self.args.anchor_label_weight == 0:
            return terms
        if not self.anchors.labelled:
            raise InputError(
                f"anchor_label_weight={self.args.anchor_label_weight:g}, but the anchors have no labels; set it to 0 "
                "or add a label column to anchor_dataset"
            )
        return [*terms, AnchorLabels(self.args.anchor_label_weight)]

    @property
    def unseen(self) -> dict[str, Anchors]:
        """Inputs of the earlier tasks on which nothing is trained, by what they are for."""
        named = {"heldout": self.heldout, "calibrating": self.calibrating}
        return {name: inputs for name, inputs in named.items() if inputs is not None}

    def _lacks_nodes(self) -> bool:
        """Whether the reference lacked some of the output nodes in which the network is compared with it."""
        if self._reference_nodes is None:
            return False
        compared = True if self._nodes is None else self._nodes[: len(self._reference_nodes)]
        return bool((compared & ~self._reference_nodes).any())

    @property
    def anchors_per_step(self) -> int:
        """Anchors of one optimizer step, over accumulation steps and processes."""
        return min(self.args.anchor_batch_size or self.trainer.examples_per_step, len(self.anchors))

    def draw(self, step: int, part: int, parts: int) -> list[int]:
        """Anchors of one micro-batch; see [`~hf_fip.functional.anchors.anchor_batch`]."""
        seed = self.trainer.data_seed
        return anchor_batch(len(self.anchors), self.anchors_per_step, seed=seed, step=step, part=part, parts=parts)

    def batch(self, logits: Tensor, indices: list[int], share: float) -> OutputBatch:
        """The anchors' part of a step: `logits` are the model's outputs on `anchors.inputs(indices)`."""
        rows, example_index = self.anchors.select(logits, indices)
        labels = self.anchors.labels(indices)
        return OutputBatch(
            outputs=rows,
            labels=None if labels is None else labels.to(rows.device, non_blocking=True),
            reference=self.anchors.reference(indices).to(rows.device, non_blocking=True),
            example_index=example_index,
            examples=len(indices),
            share=share,
            tasks=[self.anchors.tasks[i] for i in indices],
            nodes=_rows_of(self._nodes, self.anchors, indices, rows.device),
            reference_nodes=_rows_of(self._reference_nodes, self.anchors, indices, rows.device),
        )

    # ---- References and drift ----------------------------------------------------------------------------------

    def refer(self) -> None:
        """Caches the current network's outputs on anchors and held-out inputs as the reference."""
        pin = torch.cuda.is_available() and self.args.dataloader_pin_memory
        dtype = getattr(torch, self.args.anchor_cache_dtype)
        for anchors in (self.anchors, *self.unseen.values()):
            outputs = torch.cat(self._gather([rows for _, rows, _ in self._outputs(anchors, check_size=True)]))
            anchors.remember(outputs, dtype=dtype, pin=pin)

    def refer_to_present(self) -> None:
        """The current network becomes the reference, with all of its outputs."""
        self.refer()
        self._reference_nodes = self._nodes

    def _refer_to(self, nodes: Sequence[Node]) -> None:
        """
        On each task's inputs, the reference becomes the outputs of the node that had just learned it. What its head
        did not have yet is compared with its mean output: with the outputs of the path's start in their place, a
        stream without labels lost half of what it keeps so.
        """
        if self.trainer.kind is not OutputKind.EXAMPLE:
            raise InputError(
                f"reference='learned' needs one output row per example, but a {type(self.trainer.unwrapped).__name__} "
                f"has {self.trainer.kind.value}; use reference='origin'"
            )
        known = [0] * len(nodes)
        for number, node in enumerate(nodes):
            model = node.load_model().to(self.args.device)
            for anchors in (self.anchors, *self.unseen.values()):
                indices = [i for i, task in enumerate(anchors.tasks) if task == number]
                rows = self._gather([rows for _, rows, _ in self._outputs(anchors, indices=indices, model=model)])
                if rows:
                    outputs = torch.cat(rows)
                    anchors.amend(indices, self.args.distance.extend(outputs.float(), anchors.all_reference.shape[-1]))
                    known[number] = outputs.shape[-1]
        self._know(known)

    def _know(self, known: Sequence[int]) -> None:
        """Of each task, how many of the nodes the reference had: its predictions are among those."""
        table = torch.arange(self.anchors.all_reference.shape[-1]) < torch.tensor(known)[:, None]
        self._reference_nodes = table if self._nodes is None else table & self._nodes[: len(known)]

    def drift(self, anchors: Anchors) -> Drift:
        """How far the current network's outputs on `anchors` are from the reference."""
        distances, changed, kept = [], [], []
        keep = self._edge_indices if anchors is self.anchors else range(0)
        for indices, rows, example_index in self._outputs(anchors):
            if not torch.isfinite(rows).all():
                raise FloatingPointError(
                    f"the outputs on {anchors.name} are not finite after step {self.trainer.state.global_step}; lower "
                    f"learning_rate={self.args.learning_rate:g}. No path point was recorded from these weights"
                )
            reference = anchors.reference(indices).float()
            nodes = _rows_of(self._nodes, anchors, indices, rows.device)
            batch = OutputBatch(rows, example_index=example_index, examples=len(indices), nodes=nodes)
            distances.append(self.distance.per_example(rows, reference, batch))
            differs = predictions_changed(
                within(rows, nodes),
                within(reference, _rows_of(self._reference_nodes, anchors, indices)),
            )
            if differs is not None and example_index is not None:
                differs = mean_by_example(differs.float(), batch)
            changed.append(differs)
            first = len(range(indices.start, min(indices.stop, keep.stop)))
            if first:
                kept.append(rows[:first] if example_index is None else rows[example_index < first])
        distances, changed, kept = map(self._gather, (distances, changed, kept))
        return Drift(
            distances=torch.cat(distances),
            changed=None if changed[0] is None else torch.cat(changed),
            outputs=torch.cat(kept) if kept else None,
            tasks=anchors.tasks,
        )

    @torch.no_grad()
    def _outputs(
        self,
        anchors: Anchors,
        *,
        indices: Sequence[int] | None = None,
        model: nn.Module | None = None,
        check_size: bool = False,
    ) -> Iterator[tuple[Sequence[int], Tensor, Tensor | None]]:
        """Outputs of the current network (or `model`) in this process's share of the anchors, batch by batch."""
        trainer = self.trainer
        model = model or (trainer.model_wrapped if trainer.is_fsdp_enabled else trainer.unwrapped)
        was_training = model.training
        function_mode_(trainer.accelerator.unwrap_model(model))
        chosen = range(len(anchors)) if indices is None else indices
        number = len(chosen)
        processes, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        first, last = rank * number // processes, (rank + 1) * number // processes
        for start in range(first, last, self.args.eval_batch_size):
            indices = chosen[start : min(start + self.args.eval_batch_size, last)]
            with trainer.accelerator.autocast():
                logits = logits_of(model(**trainer.to_device(anchors.inputs(indices))))
            if check_size and start == first:
                item = getattr(torch, self.args.anchor_cache_dtype).itemsize
                anchors.check_size(logits.shape[-1], bytes_per_value=item, limit_gb=self.args.anchor_cache_limit_gb)
            rows, example_index = anchors.select(logits, indices)
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            yield indices, rows.cpu(), None if example_index is None else example_index.cpu()
        model.train(was_training)

    def _gather(self, parts: list) -> list:
        """The parts of all processes, in the order of the anchors."""
        return gather_object(parts) if self.trainer.accelerator.num_processes > 1 else parts

    def edge_outputs(self, model: nn.Module | None = None) -> Tensor:
        """Outputs, `[rows, outputs]`, on the anchors by which edges of the graph are measured."""
        return torch.cat(
            self._gather([rows for _, rows, _ in self._outputs(self.anchors, indices=self._edge_indices, model=model)])
        )

    def edge_lengths(self, drift: Drift) -> dict[str, Any]:
        """Functional distance of the drifted network to the last recorded point and to the root of the graph."""
        outputs = drift.outputs
        lengths = {"name": self.distance.distance.name, "unit": self.distance.distance.unit}
        for key, reference in (("parent", self.last_point), ("root", self.root)):
            lengths[key] = None if reference is None else self._mean_distance(outputs, reference)
        self.last_point = outputs
        return lengths

    def _mean_distance(self, outputs: Tensor, reference: Tensor) -> float:
        example_index = self.anchors.example_index(self._edge_indices)
        batch = OutputBatch(outputs, example_index=example_index, examples=len(self._edge_indices))
        return self.distance.per_example(outputs, reference, batch).mean().item()

    # ---- The budget --------------------------------------------------------------------------------------------

    def restore(self) -> tuple[Drift | None, dict[str, Any]]:
        """
        Brings the network back into the budget: Adam on the preserving terms, at 0.3 of the learning rate, until the
        drift on all anchors is allowed again, and the calibrating inputs agree, or `restoration_steps` are spent. What
        the network has gained is kept by the same distance: that to its present outputs on inputs of the new task. The
        run's own optimizer is left alone: with its moments, which are those of the task, the way back took three times
        as many steps.

        Returns:
            `tuple`: the drift on the anchors afterwards (`None` without anchors) and the record for the node.
        """
        if self.distance is None:
            return None, {}
        drift, steps = self.drift(self.anchors), 0
        if not self.trainer.preserve or not self.args.budget:
            return drift, {}
        before, outside = drift, self._outside(drift)
        trained = [p for p in self.trainer.model_wrapped.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=RESTORATION_LEARNING_RATE * self.args.learning_rate)
        # Looking at all anchors costs forwards only; look about as often as that is worth a third of the steps.
        interval = max(2, min(20, len(self.anchors) // (4 * self.anchors_per_step)))
        self._gained = self._new_task_now() if outside and self.args.restoration_steps else None
        while outside and steps < self.args.restoration_steps:
            for _ in range(min(interval, self.args.restoration_steps - steps)):
                self._restoration_step(optimizer, steps)
                steps += 1
            drift = self.drift(self.anchors)
            outside = self._outside(drift)
        self._gained = None
        if outside:
            logger.warning(
                f"step {self.trainer.state.global_step}: after restoration_steps={steps} the drift on {outside} is "
                f"still above the budget ({_words(drift)} on the anchors); the point is recorded as not within it"
            )
        record = {"restoration_steps": steps, "cap_hit": bool(outside), "before_restoration": before.to_dict()}
        return drift, record

    def _outside(self, drift: Drift) -> str:
        """Of the anchors, whose drift is given, and the calibrating inputs: which do not keep the budget."""
        if self.args.budget.exceeded(drift):
            return "the anchors"
        if self.calibrating is None:
            return ""
        found = self.drift(self.calibrating).certificates(self.args.budget, CALIBRATION_CONFIDENCE)
        return "" if all(c.certified for c in found if c.asked is not None) else "the calibrating inputs"

    def _new_task_now(self) -> Anchors | None:
        """Some inputs of the new task, the reference being the network's present outputs on them."""
        trainer, rows = self.trainer, self.trainer.train_dataset
        whole = isinstance(rows, datasets.Dataset) and trainer.kind is not OutputKind.OTHER
        if not trainer.has_task or not whole:
            return None
        number = min(GAINED_INPUTS, self._affordable)
        rows = rows.select(stratified_indices([0] * len(rows), number, trainer.data_seed))
        gained = collect(trainer, rows.remove_columns(list({EXAMPLE_COLUMN} & {*rows.column_names})), "train_dataset")
        outputs = torch.cat(self._gather([rows for _, rows, _ in self._outputs(gained)]))
        # As precise as the network: the distance begins at 0, where rounding would be all of its gradient.
        gained.remember(outputs, dtype=outputs.dtype)
        return gained

    def _restoration_step(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        trainer, accelerator = self.trainer, self.trainer.accelerator
        step_number = trainer.state.global_step * RESTORATION_STREAM + number
        part, parts = accelerator.process_index, accelerator.num_processes
        indices = self.draw(step_number, part, parts)
        function_mode_(trainer.unwrapped)
        inputs = trainer.to_device(self.anchors.inputs(indices))
        gained = self._gained
        if gained is not None:
            number = min(self.anchors_per_step, len(gained))
            kept = anchor_batch(len(gained), number, seed=trainer.data_seed, step=step_number, part=part, parts=parts)
            inputs = join_inputs(inputs, trainer.to_device(gained.inputs(kept)), gained.padding)
        logits = logits_of(trainer.model_wrapped(**inputs))
        anchors = self.batch(logits[: len(indices)], indices, parts / self.anchors_per_step)
        loss, _ = total_loss(self.terms(), Step(trainer.state.global_step, anchors=anchors))
        if gained is not None:
            rows, example_index = gained.select(logits[len(indices) :], kept)
            batch = OutputBatch(rows, example_index=example_index, examples=len(kept), share=parts / number)
            reference = gained.reference(kept).to(rows.device, non_blocking=True)
            loss = loss + self.distance.weight * batch.mean(self.distance.per_example(rows, reference, batch))
        # Not accelerator.backward: its loss scaling belongs to the run's own optimizer.
        loss.backward()
        if self.args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.args.max_grad_norm)
        optimizer.step()
        trainer.change_weights()
        optimizer.zero_grad()

    def report(self, drift: Drift | None) -> dict[str, Any]:
        """What a node says about the budget: asked, reached on the anchors, certified or not on held-out inputs."""
        if drift is None:
            return {}
        budget = self.args.budget
        report: dict[str, Any] = {
            "asked": {"distance": budget.distance, "disagreement": budget.disagreement},
            "anchors": {**drift.to_dict(), "distance_by_task": drift.distance_by_task},
        }
        if self.heldout is not None:
            certificates = self.drift(self.heldout).certificates(budget)
            report["held_out"] = [certificate.to_dict() for certificate in certificates]
            for certificate in certificates:
                if certificate.asked is not None and not certificate.certified:
                    logger.warning(f"step {self.trainer.state.global_step}: {certificate.message}")
        return report


def _rows_of(
    table: Tensor | None, anchors: Anchors, indices: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor | None:
    """The table's rows for the tasks of these anchors."""
    return None if table is None else table[[anchors.tasks[i] for i in indices]].to(device, non_blocking=True)


def _words(drift: Drift) -> str:
    words = f"distance {drift.distance:.4g}"
    return words if drift.disagreement is None else f"{words}, {drift.disagreement:.2%} of predictions changed"
