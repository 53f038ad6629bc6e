"""Recording a path: at which steps a point is due, what its node says, and what a resumed run needs to know."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .cost import peak_memory_gib
from .errors import InputError
from .forward import base_model
from .graph import ModelGraph, Node
from .graph.card import write_card
from .graph.distances import measure
from .graph.files import replace_text
from .models.loading import save_model, task_of
from .storage import structure_groups
from .tasks import digest
from .version import __version__


if TYPE_CHECKING:
    from .trainer import FIPTrainer

logger = logging.get_logger(__name__)

STATE_FILE = "fip_state.json"
OUTPUTS_FILE = "fip_last_point.safetensors"
TERMS_FILE = "fip_terms.safetensors"
STEP_NORM_INTERVAL = 10

# Arguments that change the path; the rest (logging, saving, devices, …) leaves it as it is.
PATH_ARGUMENTS = (
    "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm lr_scheduler_type "
    "lr_scheduler_kwargs warmup_steps optim optim_args label_smoothing_factor per_device_train_batch_size "
    "gradient_accumulation_steps seed data_seed bf16 fp16 functional_distance distance_temperature beta "
    "distance_budget disagreement_budget restoration_steps calibration_share reference path_points step_norm solver "
    "anchor_batch_size anchor_label_weight anchor_prediction_weight anchor_positions anchor_cache_dtype"
).split()


@dataclass(frozen=True)
class Origin:
    """
    Where a path belongs in the graph, and what its nodes say about how it was made.

    Args:
        parent (`Node`, *optional*): The node the path starts from; `None` where the starting model is the root itself.
        operator (`str`, *optional*, defaults to `"FIPTrainer"`): Name of the operator.
        parameters (`dict`, *optional*): The operator's parameters, as JSON.
        protocol (`dict`, *optional*): Label space, tasks, anchors: what a number needs beside it.
        metrics (`dict`, *optional*): Metrics that the path cannot change, beside those measured at each point.
        root_only (`bool`, *optional*, defaults to `False`):
            Train first and record the result alone, as the root of a new graph.
        points (`tuple[int, ...]`, *optional*):
            Optimizer steps after which a point is due, instead of those that `path_points` or `step_norm` give.
    """

    parent: Node | None = None
    operator: str = "FIPTrainer"
    parameters: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    root_only: bool = False
    points: tuple[int, ...] = ()


class PathRecorder:
    """
    Records the points of a trainer's path as nodes of a graph.

    Args:
        trainer (`FIPTrainer`): The trainer, at the start of the path.
        graph (`ModelGraph`): The graph.
        origin (`Origin`): Where the path belongs.
    """

    def __init__(self, trainer: FIPTrainer, graph: ModelGraph, origin: Origin):
        self.trainer = trainer
        self.graph = graph
        self.origin = origin
        self.last_node: Node | None = origin.parent
        self.points: list[int] = []
        self._last_weights: list[torch.Tensor] | None = None
        self._began, self._seconds_before = time.monotonic(), 0.0
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hf_fip-path")
        self._writing: Future | None = None
        # Called, from the writing thread, when a point is on disk.
        self.on_recorded: Callable[[], None] | None = None

    def begin(self, checkpoint: str | None) -> None:
        """Records the root where the graph has none, or takes up the state of `checkpoint`."""
        trainer = self.trainer
        model, shrinks = trainer.unwrapped, trainer.args.sparse_format == "structured"
        if shrinks and isinstance(model, PreTrainedModel) and not structure_groups(model):
            raise InputError(f"sparse_format='structured': no heads are known of {type(model).__name__}; use 'auto'")
        if self.origin.parent is None and not self.origin.root_only:
            self._begin_root()
        self.run = self._run_digest()
        if checkpoint is not None:
            self._load(Path(checkpoint))
        elif trainer.preservation.distance is not None and self.graph.nodes:
            self._refer_to_root()
        if trainer.args.step_norm is not None:
            self._last_weights = self._weights_of_last_point()

    def _begin_root(self) -> None:
        node_id = f"base-{_weights_digest(self.trainer.unwrapped)}"
        if self.graph.nodes and self.graph.root.id != node_id:
            raise InputError(
                f"graph_dir={str(self.graph.folder)!r} holds a graph that starts from other weights "
                f"(root {self.graph.root.id!r}, this model would be {node_id!r}); pass the model that path started "
                "from, or another graph_dir"
            )
        missing = node_id not in self.graph
        # Every process has looked before one of them writes.
        self.trainer.accelerator.wait_for_everyone()
        if missing:
            self._add(Node(id=node_id, name="base", operator="origin", **self._root_description()))
            self.finish()
        self.last_node = self.graph[node_id]

    def _root_description(self) -> dict[str, Any]:
        description = self._description()
        source = getattr(base_model(self.trainer.unwrapped), "name_or_path", None)
        if source and not Path(source).exists():
            # A Hub id: what was made from it can say so where it is published.
            description["protocol"].setdefault("model", source)
        return description

    def _refer_to_root(self) -> None:
        """Root of a longer lineage: its outputs are taken once, from its files, and the model is let go again."""
        preservation = self.trainer.preservation
        if self.origin.parent is None or self.origin.parent.id == self.graph.root.id:
            return
        try:
            root = self.graph.root.load_model().to(self.trainer.args.device)
            preservation.root = preservation.edge_outputs(root)
        except (RuntimeError, TypeError, ValueError) as error:
            logger.info(f"functional distance to the root is not defined here ({error})")
            preservation.root = None

    def _run_digest(self) -> str:
        """Names the path: what it starts from and everything that shapes it, not where or how it is run."""
        trainer = self.trainer
        arguments = trainer.args.to_dict()
        identity = {
            "parent": self.last_node.id if self.last_node else _weights_digest(trainer.unwrapped),
            "operator": self.origin.operator,
            "parameters": self.origin.parameters,
            "arguments": {name: arguments[name] for name in PATH_ARGUMENTS},
            "max_steps": trainer.state.max_steps or trainer.args.max_steps,
            "epochs": trainer.args.num_train_epochs,
            "processes": trainer.accelerator.num_processes,
            "task_nodes": None if trainer.node_table is None else trainer.node_table.tolist(),
            "terms": [[type(term).__name__, term.name, term.weight] for term in trainer.terms],
            "data": [_digest(d) for d in (trainer.train_dataset, trainer.anchor_dataset, trainer.heldout_dataset)],
        }
        return hashlib.blake2b(json.dumps(identity, sort_keys=True, default=str).encode(), digest_size=4).hexdigest()

    # ---- Recording ---------------------------------------------------------------------------------------------

    def due(self) -> bool:
        """Whether the step just taken ends at a path point."""
        step, last = self.trainer.state.global_step, self.trainer.state.max_steps
        if step >= last:
            return True
        if self.origin.root_only:
            return False
        if self.origin.points:
            return step in self.origin.points
        if self.trainer.args.step_norm is not None:
            return step % STEP_NORM_INTERVAL == 0 and self._distance_moved() >= self.trainer.args.step_norm
        points = self.trainer.args.path_points
        return any(step == round(i * last / points) for i in range(1, points))

    def record(self) -> None:
        """Ends the segment, records the point, begins the next segment."""
        trainer = self.trainer
        step = trainer.state.global_step
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            for term in trainer.terms:
                term.end_segment(trainer.unwrapped)
            drift, restoration = trainer.preservation.restore()
            _check_finite(trainer.unwrapped, step)
            description = self._description(drift, restoration)
            branch, index = trainer.args.branch, len(self.points) + 1
            if self.origin.root_only:
                node_id, branch, parent = f"base-{self.run}", "base", None
            else:
                node_id, parent = f"{branch}-{index:02d}-{self.run}", self.last_node.id
            node = Node(
                id=node_id,
                parent=parent,
                name=branch,
                operator=self.origin.operator,
                parameters=self.origin.parameters,
                step=step,
                **description,
            )
            self._add(node)
            self.last_node = node
            self.points.append(step)
            if trainer.args.reference == "previous" and trainer.preservation.distance is not None:
                trainer.preservation.refer_to_present()
            if trainer.args.step_norm is not None:
                self._last_weights = [p.detach().clone() for p in self._trained_parameters().values()]
            for term in trainer.terms:
                term.begin_segment(trainer.unwrapped)

    def _description(self, drift=None, restoration: dict | None = None) -> dict[str, Any]:
        """What a node of the current network says, whoever made it."""
        trainer = self.trainer
        preservation = trainer.preservation
        last = trainer.state.max_steps
        finished = trainer.state.global_step >= last or trainer.control.should_training_stop
        path = {"steps": last, "examples_per_step": trainer.examples_per_step, "finished": finished}
        protocol = {**self.origin.protocol, "seed": trainer.args.seed, "path": path}
        for term in trainer.terms:
            protocol |= term.report()
        lengths: dict[str, Any] = {}
        if preservation.distance is not None and drift is not None:
            protocol["budget"] = {**preservation.report(drift), **(restoration or {})}
            lengths = preservation.edge_lengths(drift)
        return {
            "metrics": {**self.origin.metrics, **trainer.measure()},
            "functional_distance": lengths,
            "task": task_of(trainer.unwrapped),
            "protocol": protocol,
            # Not in the protocol, which says what would be the same in another run.
            "extra": {"cost": {"seconds": self._seconds, "peak_memory_gib": peak_memory_gib(trainer.args.device)}},
            "versions": {
                "hf_fip": __version__,
                "transformers": transformers.__version__,
                "torch": torch.__version__,
            },
        }

    @property
    def _seconds(self) -> float:
        """Wall-clock seconds since the path began, over all runs that it took."""
        return self._seconds_before + time.monotonic() - self._began

    def _add(self, node: Node) -> None:
        """
        Writes the node on the main process. Training goes on as soon as the model's files are written; measuring,
        syncing and publishing them is left to a thread.
        """
        self.flush()
        trainer = self.trainer
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
        if not trainer.is_world_process_zero():
            return
        written = Event()

        def write(folder: Path) -> dict[str, Any]:
            try:
                with _no_progress_bars():
                    save_model(trainer.unwrapped, folder, state_dict=state, sparse_format=trainer.args.sparse_format)
                if trainer.processing_class is not None:
                    trainer.processing_class.save_pretrained(folder)
            finally:
                written.set()
            parent = None if node.parent is None else self.graph[node.parent].folder
            measured = measure(folder, parent, self.graph.root.folder if self.graph.nodes else None)
            write_card(dataclasses.replace(node, **measured), folder)
            return measured

        self._writing = self._writer.submit(self.graph.add, node, write)
        # A node that is there already is not written again.
        self._writing.add_done_callback(lambda _: written.set())
        self._writing.add_done_callback(self._tell)
        written.wait()

    def _tell(self, writing: Future) -> None:
        if self.on_recorded is not None and writing.exception() is None:
            self.on_recorded()

    def flush(self) -> None:
        """Waits until the last point is on disk; raises what went wrong on the way."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def finish(self) -> None:
        """Every point is on disk, and every process sees them."""
        self.flush()
        self.trainer.accelerator.wait_for_everyone()
        if not self.trainer.is_world_process_zero():
            self.graph.refresh()

    def _distance_moved(self) -> float:
        """‖w − w_t‖ since the last recorded point."""
        weights = [p.detach() for p in self._trained_parameters().values()]
        norms = torch._foreach_norm(torch._foreach_sub(weights, self._last_weights))
        return torch.stack(norms).norm().item()

    def _trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.trainer.unwrapped.named_parameters() if p.requires_grad}

    def _weights_of_last_point(self) -> list[torch.Tensor]:
        # At the start of a path the model itself holds them; a resumed path finds them in its last node.
        model = self.last_node.load_model() if self.points else self.trainer.unwrapped
        weights = dict(model.named_parameters())
        device = self.trainer.args.device
        return [weights[name].detach().to(device, copy=True) for name in self._trained_parameters()]

    # ---- Resuming ----------------------------------------------------------------------------------------------

    def save(self, checkpoint: Path) -> None:
        """Writes what a resumed run needs beside the Trainer's own files, once the nodes it names are on disk."""
        self.flush()
        if not self.trainer.is_world_process_zero():
            return
        checkpoint.mkdir(parents=True, exist_ok=True)
        preservation = self.trainer.preservation
        if preservation.distance is not None:
            tensors = {"last_point": preservation.last_point}
            if preservation.root is not None:
                tensors["root"] = preservation.root
            if self.trainer.args.reference == "previous":
                tensors["reference"] = preservation.anchors.all_reference
                for name, inputs in preservation.unseen.items():
                    tensors[name] = inputs.all_reference
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, checkpoint / OUTPUTS_FILE)
        terms: dict[str, dict[str, Any]] = {}
        tensors = {}
        for term in self.trainer.terms:
            terms[term.name] = {}
            for key, value in term.state_dict().items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{term.name}/{key}"] = value.detach().contiguous().cpu()
                else:
                    terms[term.name][key] = value
        if tensors:
            save_file(tensors, checkpoint / TERMS_FILE)
        state = {
            "run": self.run,
            "last_node": None if self.last_node is None else self.last_node.id,
            "points": self.points,
            "seconds": self._seconds,
            "terms": terms,
        }
        replace_text(checkpoint / STATE_FILE, json.dumps(state, indent=2) + "\n")

    def _load(self, checkpoint: Path) -> None:
        path = checkpoint / STATE_FILE
        if not path.is_file():
            raise InputError(
                f"resume_from_checkpoint={str(checkpoint)!r} holds no {STATE_FILE}: it was not written by FIPTrainer"
            )
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["last_node"] is not None:
            self.last_node = self.graph[state["last_node"]]
        self.points = state["points"]
        self.run = state["run"]
        self._seconds_before = state.get("seconds", 0.0)
        saved = checkpoint / TERMS_FILE
        tensors = load_file(saved, device=str(self.trainer.args.device)) if saved.is_file() else {}
        for term in self.trainer.terms:
            own = {
                key.removeprefix(f"{term.name}/"): t for key, t in tensors.items() if key.startswith(f"{term.name}/")
            }
            term.load_state_dict({**state["terms"].get(term.name, {}), **own})
        preservation = self.trainer.preservation
        if preservation.distance is not None:
            tensors = load_file(checkpoint / OUTPUTS_FILE)
            preservation.last_point, preservation.root = tensors["last_point"], tensors.get("root")
            if "reference" in tensors:
                preservation.anchors.remember(tensors["reference"], dtype=tensors["reference"].dtype)
            for name, inputs in preservation.unseen.items():
                if name in tensors:
                    inputs.remember(tensors[name], dtype=tensors[name].dtype)


def last_complete_checkpoint(folder: str | os.PathLike) -> str | None:
    """
    The newest checkpoint that was written to its end. The Trainer writes `trainer_state.json` last, so a checkpoint
    cut short by a kill lacks it or holds half of it.

    Args:
        folder (`str` or `os.PathLike`): The run's `output_dir`.
    """
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        number = path.name.rpartition("-")[2]
        if not number.isdigit() or not (path / STATE_FILE).is_file():
            continue
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning(f"{path} is incomplete (the run was interrupted while writing it); it is passed over")
            continue
        found.append((int(number), str(path)))
    return max(found)[1] if found else None


@contextmanager
def _no_progress_bars():
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _weights_digest(model: nn.Module) -> str:
    """Content of the weights as 8 hex digits."""
    content = hashlib.blake2b(digest_size=4)
    for name, tensor in sorted(model.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
    return content.hexdigest()


def _digest(dataset) -> str | None:
    return digest(dataset) if hasattr(dataset, "__len__") and len(dataset) else None


def _check_finite(model: nn.Module, step: int) -> None:
    norms = torch._foreach_norm([p.detach() for p in model.parameters() if p.is_floating_point()])
    if not torch.isfinite(torch.stack([norm.float().to("cpu") for norm in norms])).all():
        raise FloatingPointError(
            f"the weights hold NaN or infinite values after step {step}; lower learning_rate. The points recorded "
            "before are whole"
        )
