"""The operator CL: a new task is learned, earlier ones are kept."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any

from datasets import Dataset, concatenate_datasets

from ..baselines import get_method
from ..data.resolve import EMBEDDED
from ..errors import InputError
from ..functional.budget import Budget
from ..graph import Node
from ..models.heads import grow_head
from ..objectives.keep_zeros import kept_zeros
from ..task_data import runner_up
from ..tasks import Task
from ..trainer import FIPTrainer
from .path_operator import PathOperator, Start
from .travel import training_arguments


class ContinualLearning(PathOperator):
    """
    The paper's operator CL: learns a task while the outputs on samples of all earlier tasks hardly change.

    Args:
        dataset (`Task` or `str`):
            The new task, or its data set: a Hub id, a local folder or file, or `embedded:NAME`.
        method (`str`, *optional*, defaults to `"fip"`):
            How: the functionally invariant path, or a baseline of [`METHODS`] in the same trainer.
        label_space (`str`, *optional*, defaults to `"append"`):
            `"append"` adds output nodes for the new labels, old ones keep their place; `"shared"` keeps the head,
            whose labels have to be the new task's.
        anchors (`int`, *optional*, defaults to 2000):
            Number of training inputs of the earlier tasks, split evenly between them, on which the function is kept.
            Their labels are not used unless the method says so.
        anchor_shift (`int`, *optional*, defaults to 0):
            Images: keep the function on copies of each anchor too, shifted by up to so many pixels.
        functional_distance, beta, distance_budget, disagreement_budget, anchor_label_weight, anchor_batch_size,
        reference, path_points:
            As in [`FIPConfig`].
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
    ```
    """

    def __init__(
        self,
        dataset: Task | str,
        *,
        method: str = "fip",
        label_space: str = "append",
        anchors: int = 2000,
        functional_distance: str | None = None,
        beta: float | None = None,
        distance_budget: float | None = None,
        disagreement_budget: float | None = None,
        anchor_label_weight: float = 0.0,
        anchor_batch_size: int | None = None,
        anchor_shift: int = 0,
        reference: str = "origin",
        path_points: int = 5,
        keep_zeros: bool = True,
        branch: str | None = None,
        training: dict[str, Any] | None = None,
        seed: int = 0,
        data_root: str | None = None,
        max_length: int | None = None,
    ):
        self.task = dataset if isinstance(dataset, Task) else Task(name=_short_name(dataset), dataset=dataset)
        self.method = get_method(method)
        if label_space not in ("append", "shared"):
            raise InputError(f"label_space={label_space!r} is unknown; choose 'append' or 'shared'")
        if anchors < 2:
            raise InputError(f"anchors={anchors} are too few to keep a function on; give at least 2, better hundreds")
        Budget(distance_budget, disagreement_budget)
        self.data_root = data_root
        self.branch = branch or method
        preserving = {
            "functional_distance": functional_distance,
            "beta": beta,
            "distance_budget": distance_budget,
            "disagreement_budget": disagreement_budget,
            "anchor_label_weight": anchor_label_weight,
        }
        given = {name: value for name, value in preserving.items() if value} if method == "fip" else {}
        self.arguments = {
            **training_arguments(training),
            **self.method.arguments,
            **given,
            "anchor_batch_size": anchor_batch_size,
            "reference": reference,
            "path_points": path_points,
        }
        self.parameters = {
            "task": self.task.to_dict(),
            "method": method,
            "label_space": label_space,
            "anchors": anchors,
            "anchor_shift": anchor_shift,
            "keep_zeros": keep_zeros,
            "seed": seed,
            "max_length": max_length,
            **self.arguments,
        }

    def _tasks(self, node: Node) -> list[Task]:
        if any(old.name == self.task.name for old in node.tasks):
            raise InputError(f"node {node.id!r} has learned a task {self.task.name!r} already; name the new one")
        return [*node.tasks, self.task]

    def _trainer(self, start: Start) -> FIPTrainer:
        is_labelled = start.kind != "fill-mask"
        space = self._extend_head(start.model, start.anchors, start.processor) if is_labelled else []
        spaces = {**start.spaces, self.task.name: space}
        train = start.data.features(self.task, space, "train")
        if self.method.all_data:
            earlier = [start.data.features(old, spaces[old.name], "train") for old in start.node.tasks]
            train = concatenate_datasets([train, *earlier]).shuffle(seed=self.parameters["seed"])
        protocol = {
            "label_policy": self.parameters["label_space"] if is_labelled else "vocabulary",
            "method": self.method.summary,
        }
        return FIPTrainer(
            **self._shared(start, protocol, spaces),
            train_dataset=train,
            terms=[*kept_zeros(start.node, self.parameters["keep_zeros"]), *self.method.terms()],
            preserve=self.method.preserve,
        )

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


def _short_name(dataset: str) -> str:
    return FilePath(dataset.removeprefix(EMBEDDED)).stem
