"""[`FIPTrainer`]: runs the terms of a path in the Trainer, and has the path's points recorded. Glue only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .batches import EmptySteps, SeededByContent
from .callbacks import RecordPoints
from .config import FIPConfig
from .errors import InputError
from .forward import OutputKind, base_model, count_labels, function_mode_, label_losses, logits_of, output_kind
from .functional.anchors import join_inputs
from .functional.task_nodes import accuracy, node_table, task_loss_within
from .graph import ModelGraph, Node
from .models.loading import load_checkpoint_, load_model
from .objectives import TaskLoss
from .path import Origin, PathRecorder, last_complete_checkpoint
from .preservation import Preservation
from .starting_network import EXAMPLE_COLUMN, StartingNetwork, number_examples_
from .term_log import TermLog, check_finite
from .terms import OutputBatch, Step, Term, apply_gradient_terms, apply_weight_terms, overrides, total_loss
from .trust_region import preservation_for


logger = logging.get_logger(__name__)

SPEED_METRICS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")


class FIPTrainer(Trainer):
    """
    A [`~transformers.Trainer`] that moves a network along a functionally invariant path: its outputs on the anchors
    hardly change while a secondary objective is followed (Raghavan et al., 2024, eq. 4). Every recorded point of the
    path is a complete model and a node of a [`ModelGraph`].

    Takes every argument of [`~transformers.Trainer`], by keyword, and:

    Args:
        model (`PreTrainedModel`, `PeftModel` or `str`, *optional*):
            Where the path starts; a string is a Hub id or a folder.
        args (`FIPConfig`, *optional*):
            Arguments of the run.
        anchor_dataset (map-style dataset, *optional*):
            Inputs on which the function is kept, prepared like `train_dataset`. Labels are optional and not needed.
            Where there are anchors the network trains in evaluation mode (no dropout, batch norms on their running
            statistics), in which its function is defined. Without anchors nothing is kept: that is plain fine-tuning,
            dropout and all, recorded in a graph.
        heldout_dataset (map-style dataset, *optional*):
            Further inputs of the old task, never trained on: the budget is certified on them.
        train_dataset (dataset, *optional*):
            Data of the secondary objective; `None` for L = 0 (set `max_steps`).
        objective (`Term` or list of `Term`, *optional*):
            The secondary objective L(x, w); defaults to the task loss on `train_dataset`.
        terms (list of `Term`, *optional*):
            Further terms that shape the step.
        preserve (`bool`, *optional*, defaults to `True`):
            Whether the functional distance on the anchors is minimised. If not, it is only measured, and what is done
            with the anchors is left to `terms`: that is how the baselines run.
        graph (`ModelGraph`, *optional*):
            The graph that receives the path; defaults to the one in `args.graph_dir`.
        origin (`Origin`, *optional*):
            Where the path belongs in the graph. By default the starting model becomes its root.
        task_nodes (sequence of sequences of `int`, *optional*):
            The output nodes of each task, oldest first, where the task of an input is known (task-incremental):
            losses of labels, predictions and accuracy are taken within an input's task. See `fip_task` of anchors.
        references (sequence of `Node`, *optional*):
            For each earlier task the node whose outputs are kept on its anchors; by default those of the path's start.
        known_outputs (`int`, *optional*):
            Number of output nodes before the head grew for this path: the reference's predictions are among those, and
            new classes are kept away from the anchors (`anchor_prediction_weight` of the configuration).

    Raises:
        [`InputError`]: for arguments that cannot work, before training starts.

    Example:

    ```python
    trainer = FIPTrainer(
        model=model,
        args=FIPConfig("out", distance_budget=0.02, path_points=5),
        anchor_dataset=yelp_sample,
        train_dataset=imdb,
        eval_dataset={"yelp": yelp_test, "imdb": imdb_test},
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.graph["fip"].metrics
    ```
    """

    _tag_names = ["fip", "functionally-invariant-path"]
    # The parts of a micro-batch are parts of the mean over the whole optimizer step: see OutputBatch.mean.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module | str | None = None,
        args: FIPConfig | None = None,
        *,
        anchor_dataset: Any = None,
        heldout_dataset: Any = None,
        train_dataset: Any = None,
        objective: Term | Sequence[Term] | None = None,
        terms: Sequence[Term] = (),
        preserve: bool = True,
        graph: ModelGraph | None = None,
        origin: Origin | None = None,
        task_nodes: Sequence[Sequence[int]] | None = None,
        references: Sequence[Node] = (),
        known_outputs: int | None = None,
        **kwargs: Any,
    ):
        args = FIPConfig("trainer_output") if args is None else args
        if not isinstance(args, FIPConfig):
            raise InputError(
                f"args is a {type(args).__name__}; pass an FIPConfig, it takes every TrainingArguments field"
            )
        args.check_data(train_dataset, anchor_dataset, heldout_dataset)
        self.has_task = train_dataset is not None
        self.anchor_dataset = anchor_dataset
        self.heldout_dataset = heldout_dataset
        self.preserve = preserve
        self.references = tuple(references)
        self.known_outputs = known_outputs
        self.node_table: Tensor | None = None
        self.terms: list[Term] = []
        self.path: PathRecorder | None = None
        self.preservation: Preservation | None = None
        self.term_log: TermLog | None = None
        if objective is None and self.has_task:
            objective = TaskLoss()
        self._objective = [objective] if isinstance(objective, Term) else list(objective or ())
        self._given_terms = list(terms)
        self._given_graph = graph
        self._origin = origin or Origin()
        super().__init__(
            model=load_model(model) if isinstance(model, str) else model,
            args=args,
            train_dataset=train_dataset if self.has_task else EmptySteps(args),
            **kwargs,
        )
        if self.is_deepspeed_enabled:
            raise InputError("deepspeed is not supported; use DDP or FSDP2 through accelerate")
        if self.args.n_gpu > 1:
            raise InputError(
                f"{self.args.n_gpu} GPUs in one process (DataParallel): not supported; start with `accelerate launch`"
            )
        if any(term.uses_task_reference for term in terms):
            number_examples_(self)
        if task_nodes is not None:
            if not self.is_classifier:
                raise InputError(f"task_nodes: a {type(self.unwrapped).__name__} is no classifier of single labels")
            self.node_table = node_table(task_nodes, base_model(self.unwrapped).config.num_labels)
            within_task = task_loss_within(self.node_table, smoothing=args.label_smoothing_factor)
            self.compute_loss_func = self.compute_loss_func or within_task
        if self.compute_metrics is None and self.is_classifier:
            self.compute_metrics = partial(accuracy, table=self.node_table)
        self.add_callback(RecordPoints(self))
        if args.push_path_to_hub:
            from .hub.training import PublishPath

            self.add_callback(PublishPath(self))

    # ---- The network -------------------------------------------------------------------------------------------

    @property
    def unwrapped(self) -> nn.Module:
        """The Transformers or PEFT model without DDP or AMP around it."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def kind(self) -> OutputKind:
        """What the model's outputs are."""
        return output_kind(self.unwrapped)

    @property
    def is_classifier(self) -> bool:
        """Whether the model gives each example one class of several."""
        config = getattr(base_model(self.unwrapped), "config", None)
        return (
            self.kind is OutputKind.EXAMPLE
            and getattr(config, "problem_type", None) in (None, "single_label_classification")
            and getattr(config, "num_labels", 1) > 1
        )

    @property
    def data_seed(self) -> int:
        """Seed of everything drawn from the data."""
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    @property
    def examples_per_step(self) -> int:
        """Task examples of an optimizer step, over accumulation steps and processes."""
        return self._train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def graph(self) -> ModelGraph:
        """The graph that holds the path."""
        if self.path is not None:
            self.path.flush()
            return self.path.graph
        return ModelGraph(self._graph_folder()) if self._given_graph is None else self._given_graph

    def _graph_folder(self) -> str:
        if self.hp_search_backend is not None:
            # Each trial starts a path of its own.
            return os.path.join(self._get_output_dir(trial=self._trial), "graph")
        return self.args.graph_dir or os.path.join(self.args.output_dir, "graph")

    def to_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Model inputs on this process's device."""
        return {key: value.to(self.args.device, non_blocking=True) for key, value in inputs.items()}

    # ---- The step ----------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the terms in training; the plain task loss in evaluation."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.preservation.anchors is not None:
            # Networks can be compared in one mode only; so all methods that are given anchors train in it.
            function_mode_(self.unwrapped)
        step, outputs = self._forward(model, inputs, num_items_in_batch)
        loss, values = total_loss(self.terms, step)
        if loss is None:
            raise InputError("terms: none of them has a loss, so there is no gradient to follow")
        self.term_log.add(values)
        return (loss, outputs) if return_outputs else loss

    def _forward(self, model: nn.Module, inputs, num_items) -> tuple[Step, Any]:
        """One forward of task batch and anchor batch together (two where the model computes its own loss)."""
        step = Step(number=self.state.global_step)
        indices = self._draw_anchors()
        anchor_inputs = self.to_device(self.preservation.anchors.inputs(indices)) if indices else {}
        anchor_logits = outputs = None
        if not self.has_task:
            outputs = model(**anchor_inputs)
            anchor_logits = logits_of(outputs)
        elif self.kind is OutputKind.OTHER:
            step.task_loss, outputs = super().compute_loss(model, inputs, True, num_items)
            if not (self.model_accepts_loss_kwargs and num_items is not None) and self.compute_loss_func is None:
                step.task_loss = step.task_loss / self.current_gradient_accumulation_steps
            if indices:
                anchor_logits = logits_of(model(**anchor_inputs))
        else:
            inputs = dict(inputs)
            labels, examples = inputs.pop("labels", None), inputs.pop(EXAMPLE_COLUMN, None)
            size = len(next(iter(inputs.values())))
            if indices:
                inputs = join_inputs(inputs, anchor_inputs, self.preservation.anchors.padding)
            outputs = model(**inputs)
            logits = logits_of(outputs)
            anchor_logits = logits[size:]
            self._add_task(step, logits[:size], labels, outputs, num_items)
            step.task.reference = self._start.task_reference(examples)
        if indices:
            share = self.accelerator.num_processes / self.preservation.anchors_per_step
            step.anchors = self.preservation.batch(anchor_logits, indices, share)
        return step, outputs

    def _add_task(self, step: Step, logits: Tensor, labels: Tensor | None, outputs, num_items) -> None:
        if labels is None:
            raise InputError("train_dataset: its batches have no `labels`, which the task loss needs")
        if self.kind.per_token:
            # The anchors may be longer than the task's texts, which are padded to them.
            logits = logits[:, : labels.shape[1]]
        processes = self.accelerator.num_processes
        step.task = OutputBatch(logits, labels=labels, examples=len(logits), share=processes / num_items)
        if self.compute_loss_func is not None:
            task_outputs = {
                key: value[: len(logits)] if isinstance(value, Tensor) and value.ndim else value
                for key, value in outputs.items()
            }
            step.task_loss = self.compute_loss_func(task_outputs, labels, num_items_in_batch=num_items) * processes
        else:
            config = base_model(self.unwrapped).config
            smoothing = self.args.label_smoothing_factor
            step.task_loss = step.task.mean(label_losses(logits, labels, self.kind, config, smoothing=smoothing))

    def _draw_anchors(self) -> list[int]:
        """Anchors of this micro-batch: a function of seed, optimizer step, accumulation step and process."""
        if not self._uses_anchors:
            return []
        if self._micro_step[0] != self.state.global_step:
            self._micro_step = [self.state.global_step, 0]
        processes = self.accelerator.num_processes
        parts = self.current_gradient_accumulation_steps * processes
        part = self._micro_step[1] * processes + self.accelerator.process_index
        self._micro_step[1] += 1
        return self.preservation.draw(self.state.global_step, part, parts)

    def _get_num_items_in_batch(self, batch_samples, device):
        if self.kind is OutputKind.OTHER or not batch_samples or batch_samples[0].get("labels") is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        count = sum(count_labels(batch["labels"], self.kind) for batch in batch_samples).to(device)
        return self.accelerator.reduce(count, "sum") if self.args.world_size > 1 else count

    def get_train_dataloader(self):
        """The task's batches, or as many empty ones as the path has steps where there is no task."""
        if self.has_task:
            collate = self.data_collator
            if self.kind.per_token and not isinstance(collate, DataCollatorWithPadding):
                self.data_collator = SeededByContent(collate, self.data_seed)
            try:
                return super().get_train_dataloader()
            finally:
                self.data_collator = collate
        return self.accelerator.prepare(DataLoader(self.train_dataset, batch_size=self._train_batch_size))

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One backward per micro-batch; weight-space gradients are added once the step's gradient is complete."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._has_gradient_terms and self.accelerator.sync_gradients:
            scaler = getattr(self.accelerator, "scaler", None)
            parameters = [p for p in model.parameters() if p.requires_grad]
            apply_gradient_terms(self.terms, parameters, scale=scaler.get_scale() if scaler else 1.0)
        return loss

    def change_weights(self, step: int | None = None) -> None:
        """Runs the terms' hooks that change weights; without `step` only those that constrain them."""
        if self._has_weight_terms:
            parameters = [p for p in self.model_wrapped.parameters() if p.requires_grad]
            apply_weight_terms(self.terms, parameters, step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds every term by name to the training logs."""
        if "loss" in logs and self.term_log is not None:
            values = self.term_log.take(self.state.global_step)
            check_finite({"loss": logs["loss"], **values}, self.state.global_step, self.args.learning_rate)
            if "functional_distance" in values:
                values["beta"] = 1.0 / self.preservation.distance.weight
            logs |= values
        super().log(logs, start_time)

    # ---- The path ----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """
        Travels the path. With `resume_from_checkpoint=True` the last *complete* checkpoint of `output_dir` is taken:
        one that was cut short by a kill is passed over.
        """
        self.path, self._trial = None, trial
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise InputError(f"resume_from_checkpoint=True: {self.args.output_dir!r} holds no complete checkpoint")
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        # The last moment at which the model holds the weights the path starts from: references are taken here.
        if self.is_in_train and self.path is None:
            self._begin_path(resume_from_checkpoint)
        if self.is_fsdp_enabled or not load_checkpoint_(model or self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        if self.is_fsdp_enabled or not load_checkpoint_(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()

    def _begin_path(self, checkpoint: str | None) -> None:
        self.preservation = preservation_for(self)
        preserving = self.preservation.terms() if self.preserve else []
        self.terms = [*self._objective, *preserving, *self._given_terms]
        attentive = bool(preserving) or any(term.uses_anchors for term in self._given_terms)
        self._uses_anchors = self.preservation.anchors is not None and attentive
        self._has_gradient_terms = any(overrides(t, "add_gradient_", "constrain_gradient_") for t in self.terms)
        self._has_weight_terms = any(overrides(t, "move_weights_", "constrain_weights_") for t in self.terms)
        hooks = ("move_weights_", "constrain_weights_", "begin_path", "constrain_gradient_")
        whole = ", ".join(t.name for t in self.terms if overrides(t, *hooks))
        if whole and self.is_fsdp_enabled:
            raise InputError(f"fsdp with the terms {whole}: they need whole weights, not shards; use DDP")
        self.path = PathRecorder(self, self.graph, self._origin)
        self.path.begin(checkpoint)
        self._micro_step = [-1, 0]
        self._start = StartingNetwork(self)
        for term in self.terms:
            term.begin_path(self._start)
            term.begin_segment(self.unwrapped)

    def _save(self, output_dir=None, state_dict=None):
        # The Trainer pickles its arguments into every checkpoint, and the token with them.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def push_to_hub(self, **kwargs: Any) -> dict[str, Any] | None:
        """
        Publishes the graph: see [`ModelGraph.push_to_hub`], whose arguments it takes. Their defaults are
        `hub_namespace`, `hub_collection`, `hub_layout`, `hub_private_repo` and `hub_token` of the run's arguments.

        Returns:
            `dict`: what was published, on the main process; `None` on the others.
        """
        from .hub.training import push_path

        return push_path(self, **kwargs)

    def _save_checkpoint(self, model, trial):
        check_finite({"loss": self._tr_loss.item()}, self.state.global_step, self.args.learning_rate)
        folder = os.path.join(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        self.path.save(Path(folder))
        super()._save_checkpoint(model, trial)

    def measure(self) -> dict[str, float]:
        """
        Metrics of the current network on every evaluation data set, named `"data set/metric"`; unlike
        [`~transformers.Trainer.evaluate`] it is no evaluation event for callbacks.
        """
        if self.eval_dataset is None:
            return {}
        named = self.eval_dataset if isinstance(self.eval_dataset, dict) else {None: self.eval_dataset}
        found: dict[str, float] = {}
        for name, dataset in named.items():
            loader = self.get_eval_dataloader(name if name is not None else dataset)
            only_loss = True if self.compute_metrics is None else None
            with torch.no_grad():
                output = self.evaluation_loop(loader, f"Path point {name or ''}".strip(), only_loss)
            for key, value in output.metrics.items():
                key = key.removeprefix("eval_")
                if key not in SPEED_METRICS:
                    found[key if name is None else f"{name}/{key}"] = float(value)
        return found
