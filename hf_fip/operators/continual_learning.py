"""The operator CL: new tasks are learned, earlier ones are kept."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path as FilePath
from typing import Any

from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..baselines import METHODS, get_method
from ..baselines.lora import fresh_adapter
from ..baselines.options import options_of
from ..data.memory import MEMORIES
from ..data.resolve import EMBEDDED
from ..errors import InputError
from ..functional.budget import Budget
from ..graph import Node
from ..metrics.stream import learned_at
from ..models.heads import grow_head
from ..objectives.keep_zeros import kept_zeros
from ..task_data import HELD_OUT, runner_up
from ..tasks import Task
from ..trainer import FIPTrainer
from .base import Path
from .path_operator import PathOperator, Start, check_held_out
from .travel import training_arguments


logger = logging.get_logger(__name__)

# What a head policy makes of learning one task after another.
SCENARIOS = {"append": "class-incremental", "shared": "domain-incremental", "per_task": "task-incremental"}
REFERENCES = ("origin", "previous", "learned")


class ContinualLearning(PathOperator):
    """
    The paper's operator CL: learns a task while the outputs on samples of all earlier tasks hardly change, or a stream
    of tasks, one after another.

    Args:
        dataset (`Task` or `str`, *optional*):
            The new task, or its data set: a Hub id, a local folder or file, or `embedded:NAME`.
        stream (sequence of `Task` or `str`, *optional*):
            Instead of it, several new tasks: each path begins where the last one ended, with the same settings.
        method (`str`, *optional*, defaults to `"fip"`):
            How: the functionally invariant path, or a baseline of [`METHODS`] in the same trainer.
        method_options (`dict`, *optional*):
            What can be tuned of a baseline, `{"weight": 100.0}` of `ewc`; its own defaults otherwise.
        label_space (`str`, *optional*, defaults to `"append"`):
            `"append"` adds output nodes for the new labels, old ones keep their place, and no task is named at test
            (class-incremental); `"per_task"` adds them too, but the task of an input is known, so that label losses
            and predictions are taken within its own nodes (task-incremental); `"shared"` keeps the head, whose labels
            have to be the new task's (domain-incremental).
        anchors (`int`, *optional*, defaults to 2000):
            Number of training inputs of the earlier tasks, all together, on which the function is kept. Their labels
            are not used unless the method says so.
        held_out (`int`, *optional*, defaults to 1000):
            Number of test inputs of each earlier task on which budgets are certified.
        anchor_memory (`str`, *optional*, defaults to `"even"`):
            How they are chosen: `"even"`, `"class_balanced"` (by their labels) or `"reservoir"`; see
            [`~hf_fip.data.memory.remembered_rows`].
        anchor_shift (`int`, *optional*, defaults to 0):
            Images: keep the function on copies of each anchor too, shifted by up to so many pixels.
        anchor_mix (`int`, *optional*, defaults to 0):
            Images: keep the function on so many mixtures of each anchor with others too; see
            [`~hf_fip.data.augment.mixed_copies`].
        reference (`str`, *optional*, defaults to `"origin"`):
            Whose outputs are kept: those of the path's `"origin"` or the `"previous"` path point, as in [`FIPConfig`],
            or, on each earlier task's anchors, those of the node that had just `"learned"` it, so that what is lost
            on one path is not taken for granted on the next.
        functional_distance, beta, distance_budget, disagreement_budget, calibration_share, anchor_label_weight,
        anchor_prediction_weight, anchor_batch_size, path_points:
            As in [`FIPConfig`]. The path points are those of each task. Given to a method that keeps outputs (`der`,
            `fdr`, …) they go before its own.
        adapter (`dict`, *optional*):
            `{"rank": 8, "alpha": 16}`: the path moves a low-rank adapter (LoRA), and the weights below stay; see
            [`~hf_fip.baselines.lora.fresh_adapter`]. A node that has an adapter goes on with its own, unless
            `method="lora"` makes each task a fresh one.
        keep_zeros (`bool`, *optional*, defaults to `True`): Zeros of a compressed node stay zero.
        branch (`str`, *optional*): Name of the path in the graph; defaults to the method's.
        training (`dict`, *optional*):
            Further [`FIPConfig`] fields; `epochs` and `batch_size` are short for the Trainer's long names.
        seed (`int`, *optional*, defaults to 0): Seed of anchors, new output nodes, order of the data.
        data_root (`str`, *optional*): Local folder with the data sets, instead of the Hub.
        max_length (`int`, *optional*): Tokens kept of a text.

    Raises:
        [`InputError`]: for arguments that cannot work; names that do not match; a node without tasks.

    Example:

    ```python
    path = ContinualLearning("stanfordnlp/imdb", distance_budget=0.02)(graph["base"])
    path.end.metrics

    tasks = class_splits(Task(name="cifar100", dataset="uoft-cs/cifar100", label_column="fine_label"), 5)
    ContinualLearning(stream=tasks[1:], label_space="per_task", reference="learned")(graph["base"])
    ```
    """

    def __init__(
        self,
        dataset: Task | str | None = None,
        *,
        stream: Sequence[Task | str] | None = None,
        method: str = "fip",
        method_options: dict[str, Any] | None = None,
        label_space: str = "append",
        anchors: int = 2000,
        anchor_memory: str = "even",
        functional_distance: str | None = None,
        beta: float | None = None,
        distance_budget: float | None = None,
        disagreement_budget: float | None = None,
        calibration_share: float | None = None,
        anchor_label_weight: float | None = None,
        anchor_prediction_weight: float | None = None,
        anchor_batch_size: int | None = None,
        anchor_shift: int = 0,
        anchor_mix: int = 0,
        held_out: int = HELD_OUT,
        reference: str = "origin",
        path_points: int = 5,
        adapter: dict[str, int] | None = None,
        keep_zeros: bool = True,
        branch: str | None = None,
        training: dict[str, Any] | None = None,
        seed: int = 0,
        data_root: str | None = None,
        max_length: int | None = None,
    ):
        self.stream = _tasks_of(dataset, stream)
        self.method = get_method(method)
        _check_one_of("label_space", label_space, SCENARIOS)
        _check_one_of("anchor_memory", anchor_memory, MEMORIES)
        _check_one_of("reference", reference, REFERENCES)
        if anchors < 2:
            raise InputError(f"anchors={anchors} are too few to keep a function on; give at least 2, better hundreds")
        check_held_out(held_out)
        Budget(distance_budget, disagreement_budget)
        self.data_root = data_root
        self.branch = branch or method
        given = {
            "functional_distance": functional_distance,
            "beta": beta,
            "distance_budget": distance_budget,
            "disagreement_budget": disagreement_budget,
            "calibration_share": calibration_share,
            "anchor_label_weight": anchor_label_weight,
            "anchor_prediction_weight": anchor_prediction_weight,
        }
        self.arguments = {
            **training_arguments(training),
            **self._preserving(method, given),
            "anchor_batch_size": anchor_batch_size,
            "reference": "origin" if reference == "learned" else reference,
            "path_points": path_points,
        }
        self.method_options = self._options(method, method_options or {})
        self.adapter = None if adapter is None else _checked_adapter(adapter)
        self.task = self.stream[0]
        self.parameters = {
            "task": self.task.to_dict(),
            "method": method,
            "method_options": self.method_options,
            "label_space": label_space,
            "anchors": anchors,
            "anchor_memory": anchor_memory,
            "anchor_shift": anchor_shift,
            "anchor_mix": anchor_mix,
            "held_out": held_out,
            "adapter": self.adapter,
            "keep_zeros": keep_zeros,
            "seed": seed,
            "max_length": max_length,
            **self.arguments,
            "reference": reference,
        }

    def __call__(self, node: Node) -> Path:
        for task in self.stream:
            if any(old.name == task.name for old in node.tasks):
                raise InputError(f"node {node.id!r} has learned a task {task.name!r} already; name the new one")
        nodes: list[Node] = []
        made: dict[str, Dataset] = {}
        for number, task in enumerate(self.stream, start=1):
            if len(self.stream) > 1:
                logger.info(f"[{number}/{len(self.stream)}] {task.name}")
            operator = self._learning(task)
            operator.made = made
            nodes += operator._travel(nodes[-1] if nodes else node)
        return Path(node, tuple(nodes))

    def _learning(self, task: Task) -> ContinualLearning:
        """The operator for one task of the stream."""
        operator = copy.copy(self)
        operator.task = task
        operator.parameters = {**self.parameters, "task": task.to_dict()}
        return operator

    def _travel(self, node: Node) -> Path:
        return super().__call__(node)

    def _preserving(self, method: str, given: dict[str, Any]) -> dict[str, Any]:
        """How the function is kept: as the method does it, or as the user asks for."""
        own = self.method.arguments
        given = {name: value for name, value in given.items() if value is not None and (value or self.method.preserve)}
        keeping = ", ".join(name for name, known in METHODS.items() if known.preserve)
        for name, value in given.items():
            if not self.method.preserve and name != "functional_distance":
                raise InputError(
                    f"{name}={value!r}: method={method!r} does not minimise a distance of outputs on the anchors; "
                    f"leave it out, or use one that does: {keeping}"
                )
            if name == "functional_distance" and value != own.get(name, value):
                raise InputError(
                    f"functional_distance={value!r}: method={method!r} is defined by {own[name]!r}; use method='fip'"
                )
        return {**own, **given}

    def _options(self, method: str, options: dict[str, Any]) -> dict[str, Any]:
        known = options_of(self.method.prepare or self.method.terms)
        unknown = [name for name in options if name not in known]
        if unknown:
            raise InputError(
                f"method_options={options!r}: method={method!r} has no option {', '.join(map(str, unknown))}; it has "
                f"{', '.join(known) or 'none'}"
            )
        return dict(options)

    def _tasks(self, node: Node) -> list[Task]:
        return [*node.tasks, self.task]

    def _trainer(self, start: Start) -> FIPTrainer:
        is_labelled = start.kind == "classification"
        policy = self.parameters["label_space"]
        space = self._extend_head(start.model, start.anchors, start.processor) if is_labelled else []
        start = dataclasses.replace(start, model=self._prepared(start.model))
        spaces = {**start.spaces, self.task.name: space}
        train = start.data.features(self.task, space, "train")
        if self.method.all_data:
            earlier = [start.data.features(old, spaces[old.name], "train") for old in start.node.tasks]
            train = concatenate_datasets([train, *earlier]).shuffle(seed=self.parameters["seed"])
        scenario = SCENARIOS[policy if is_labelled else "shared"]
        if self.method.own_weights:
            scenario = SCENARIOS["per_task"]
        protocol = {
            "label_policy": policy if is_labelled else "vocabulary",
            "scenario": scenario,
            "task_id_at_test": scenario == SCENARIOS["per_task"],
            "method": self.method.summary,
        }
        learned = self.parameters["reference"] == "learned"
        grown = is_labelled and policy != "shared"
        shared = self._shared(start, protocol, spaces)
        if self.method.own_weights:
            shared = self._measured_alone(start.node, shared)
        # The zeros that an adapter begins with are there to be left, and those below it are not touched.
        keep_zeros = self.parameters["keep_zeros"] and not isinstance(start.model, PeftModel)
        options = {} if self.method.prepare else self.method_options
        return FIPTrainer(
            **shared,
            train_dataset=train,
            references=learned_at(start.graph.lineage(start.node)) if learned else (),
            known_outputs=space[0] if grown else None,
            terms=[*kept_zeros(start.node, keep_zeros), *self.method.terms(**options)],
            preserve=self.method.preserve,
        )

    def _prepared(self, model: PreTrainedModel | PeftModel) -> nn.Module:
        if self.method.prepare is not None:
            return self.method.prepare(model, **{**(self.adapter or {}), **self.method_options})
        if self.adapter is not None and not isinstance(model, PeftModel):
            return fresh_adapter(model, **self.adapter)
        return model

    def _measured_alone(self, node: Node, shared: dict[str, Any]) -> dict[str, Any]:
        """The path's trainer measures the new task alone: the earlier ones have weights of their own, as they were."""
        earlier = [old.name for old in node.tasks]
        kept = {key: value for key, value in node.metrics.items() if key.partition("/")[0] in earlier}
        origin = shared["origin"]
        protocol = {**origin.protocol, "measured_before": earlier}
        return {
            **shared,
            "eval_dataset": {self.task.name: shared["eval_dataset"][self.task.name]},
            # Where all tasks have the same nodes, there are none to leave out.
            "task_nodes": None if self.parameters["label_space"] == "shared" else shared["task_nodes"],
            "origin": dataclasses.replace(origin, protocol=protocol, metrics=kept),
        }

    @property
    def _needs_labels(self) -> bool:
        return self.method.uses_labels or self.arguments.get("anchor_label_weight", 0) > 0

    def _extend_head(self, model, anchors: Dataset, processor) -> list[int]:
        """Output nodes of the new task's labels, in their order."""
        names = self.task.label_names(self.data_root)
        if not names:
            raise InputError(f"task {self.task.name!r} has no labels; continual learning needs a labelled data set")
        known = [model.config.id2label[i] for i in range(model.config.num_labels)]
        if self.parameters["label_space"] == "shared":
            if sorted(names) != sorted(known):
                raise InputError(
                    f"label_space='shared', but task {self.task.name!r} has the labels {names} and the model {known}; "
                    "name them alike (`class_names` of the task), or use label_space='append'"
                )
            return [known.index(name) for name in names]
        new = [f"{self.task.name}: {name}" if name in known else name for name in names]
        grow_head(model, new, bias=min(0.0, runner_up(model, anchors, processor)))
        return list(range(len(known), len(known) + len(names)))


def _tasks_of(dataset: Task | str | None, stream: Sequence[Task | str] | None) -> list[Task]:
    """The tasks to learn, which are named in one of two ways."""
    if (dataset is None) == (stream is None):
        both = "both are given" if stream is not None else "neither is given"
        raise InputError(f"dataset and stream: {both}; give one task as dataset, or a list of tasks as stream")
    if isinstance(stream, (str, Task)) or (stream is not None and not stream):
        raise InputError(f"stream={stream!r} has to be a list of at least one task")
    given = [dataset] if stream is None else stream
    tasks = [task if isinstance(task, Task) else Task(name=_short_name(task), dataset=task) for task in given]
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"stream: two tasks are named {twice[0]!r}; give each a name of its own")
    return tasks


def _check_one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise InputError(f"{name}={value!r} is unknown; choose one of: {', '.join(allowed)}")


def _checked_adapter(adapter: dict[str, int]) -> dict[str, int]:
    known = options_of(fresh_adapter)
    if not isinstance(adapter, dict) or any(key not in known for key in adapter):
        raise InputError(f"adapter={adapter!r}: give a dict of {' and '.join(known)}")
    return dict(adapter)


def _short_name(dataset: str) -> str:
    return FilePath(dataset.removeprefix(EMBEDDED)).stem
