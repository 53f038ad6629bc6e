"""The arguments of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from .errors import InputError
from .functional.budget import DEFAULT_BETA, DEFAULT_BETA_WITH_PREDICTIONS, Budget
from .functional.distances import Distance, get_distance
from .storage import SPARSE_FORMATS


CACHE_DTYPES = ("float32", "bfloat16", "float16")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}={value!r} is unknown; choose one of: {', '.join(allowed)}")


@dataclass
class FIPConfig(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] and what a functionally invariant path needs besides.

    Args:
        functional_distance (`str`, *optional*, defaults to `"l2"`):
            What "the same outputs" means on the anchors: `"l2"` (eq. 2: squared distance of the outputs, in shares of
            their variance), `"kl"`, `"bhattacharyya"`, `"hellinger"`, `"fdr"`, or a name registered by the user.
        distance_temperature (`float`, *optional*):
            Softmax temperature of `"kl"`; the distance's own default otherwise.
        beta (`float`, *optional*):
            Weight of the secondary objective against the functional distance (eq. 4): `L + D / beta` is minimised.
            Defaults to what the budget asks for; without one to 0.2, or to 1 where the anchors' predictions are kept
            as well (see `anchor_prediction_weight`).
        distance_budget (`float`, *optional*):
            Forgetting control: the largest functional distance on the anchors at every recorded point, as a share of
            the outputs' variance (no unit; 0.02 is a good start). The weight follows from it.
        disagreement_budget (`float`, *optional*):
            Forgetting control: the largest share of anchors whose prediction may have changed at a recorded point.
        restoration_steps (`int`, *optional*, defaults to 100):
            Most optimizer steps spent on the distance alone to come back into the budget before a point is recorded.
        calibration_share (`float`, *optional*, defaults to 0.0):
            Forgetting control: share of `heldout_dataset` by which restoration is controlled as well: it goes on until
            these inputs, on which nothing is trained, leave no doubt that the budget is kept. The certificate rests
            on the others. 0.5 is a good choice where anchors do not speak for unseen inputs.
        reference (`str`, *optional*, defaults to `"origin"`):
            The network whose outputs are kept: the path's `"origin"`, or the `"previous"` path point.
        path_points (`int`, *optional*, defaults to 10):
            Number of points recorded, evenly spaced in optimizer steps, the last one at the end.
        step_norm (`float`, *optional*):
            Record a point wherever ‖w − w_t‖ since the last one reaches this length (ε of eqs. 3 and 4), instead of
            evenly; looked at every 10 optimizer steps. Keeps a copy of the trained weights.
        solver (`str`, *optional*, defaults to `"penalty"`):
            How eq. 4 is solved: `"penalty"`, the optimizer on L + D / beta, which travels much farther at equal time;
            or `"trust_region"`, exactly, for small faithful moves and for analysis. Every optimizer step then has the
            length `learning_rate` (ε, scheduled as usual) and is made by nothing else: `optim` is `"sgd"`, without
            momentum, decay and clipping.
        anchor_batch_size (`int`, *optional*):
            Anchors per optimizer step, over all processes and accumulation steps. Defaults to the number of task
            examples per optimizer step.
        anchor_label_weight (`float`, *optional*, defaults to 0.0):
            Weight of a cross-entropy on the anchors' labels, for anchors that have labels.
        anchor_prediction_weight (`float`, *optional*, defaults to 1.0):
            Classifiers that have grown output nodes which the reference did not have: weight of a cross-entropy to the
            class probabilities that the reference gave the anchors, 0 for the new nodes. It uses no labels, and keeps
            the new classes away from the anchors, which a distance of class scores leaves open.
        anchor_positions (`int`, *optional*):
            Language models: most scored positions kept per anchor; all by default.
        anchor_cache_dtype (`str`, *optional*, defaults to `"float32"`):
            Storage of the cached reference outputs: `"float32"`, `"bfloat16"` or `"float16"`.
        anchor_cache_limit_gb (`float`, *optional*, defaults to 4.0):
            Largest size in GiB of the anchors' inputs and cached outputs; above it the run refuses to start.
        graph_dir (`str`, *optional*):
            Folder of the model graph; defaults to `output_dir/graph`.
        branch (`str`, *optional*, defaults to `"fip"`):
            Name of the path in the graph.
        sparse_format (`str`, *optional*, defaults to `"auto"`):
            Files of the nodes: `"auto"` (as few bytes as the weights allow), `"bitmask"`, `"structured"` (heads,
            neurons and filters without influence are gone from the node as well) or `"dense"` (files that load
            without `hf_fip`); see [`~hf_fip.storage.save_compressed`]. Checkpoints hold the whole network.
        push_path_to_hub (`bool`, *optional*, defaults to `False`):
            Publish each path point as it is recorded, in the background: see [`ModelGraph.push_to_hub`]. Training
            neither waits for the Hub nor fails with it. What could not be published is published by the next run on
            the same graph, or by `hf-fip push`. `hub_private_repo` and `hub_token` are as in the Trainer.
        hub_namespace (`str`, *optional*):
            User or organisation that owns the published repositories; yourself by default.
        hub_collection (`str`, *optional*):
            Title of the Collection that holds the family, to which the repositories' names follow.
        hub_layout (`str`, *optional*, defaults to `"repo"`):
            `"repo"`: one repository per node; `"revision"`: one per path, with a tag per node.
    """

    logging_steps: float = field(default=10, metadata={"help": "Log every X optimizer steps (below 1: share of all)."})
    # A hidden NaN would be recorded as a path point: losses are checked, not filtered.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN and infinite losses in the logs."})

    functional_distance: str = field(default="l2", metadata={"help": "Distance of the outputs on the anchors."})
    distance_temperature: float | None = field(default=None, metadata={"help": "Softmax temperature of `kl`."})
    beta: float | None = field(default=None, metadata={"help": "Weight of the objective against the distance."})
    distance_budget: float | None = field(
        default=None, metadata={"help": "Largest functional distance on the anchors, share of the outputs' variance."}
    )
    disagreement_budget: float | None = field(
        default=None, metadata={"help": "Largest share of anchors whose prediction may change."}
    )
    restoration_steps: int = field(
        default=100, metadata={"help": "Most steps on the distance alone to come back into the budget at a point."}
    )
    calibration_share: float = field(
        default=0.0, metadata={"help": "Share of the held-out inputs by which restoration is controlled."}
    )
    reference: str = field(default="origin", metadata={"help": "`origin` or `previous`: whose outputs are kept."})
    path_points: int = field(default=10, metadata={"help": "Number of recorded points, evenly spaced."})
    step_norm: float | None = field(default=None, metadata={"help": "Record a point at every such weight distance."})
    solver: str = field(default="penalty", metadata={"help": "`penalty` or `trust_region`: how eq. 4 is solved."})

    anchor_batch_size: int | None = field(default=None, metadata={"help": "Anchors per optimizer step."})
    anchor_label_weight: float = field(default=0.0, metadata={"help": "Weight of the anchors' label loss."})
    anchor_prediction_weight: float = field(
        default=1.0, metadata={"help": "Weight of the reference's predictions on anchors, for heads that have grown."}
    )
    anchor_positions: int | None = field(default=None, metadata={"help": "Most scored positions per anchor (LMs)."})
    anchor_cache_dtype: str = field(default="float32", metadata={"help": "Storage of the reference outputs."})
    anchor_cache_limit_gb: float = field(default=4.0, metadata={"help": "Largest anchor cache in GiB."})

    graph_dir: str | None = field(default=None, metadata={"help": "Folder of the model graph."})
    branch: str = field(default="fip", metadata={"help": "Name of the path in the graph."})
    sparse_format: str = field(default="auto", metadata={"help": "`auto`, `bitmask`, `structured` or `dense` nodes."})
    push_path_to_hub: bool = field(default=False, metadata={"help": "Publish each path point in the background."})
    hub_namespace: str | None = field(default=None, metadata={"help": "Owner of the published repositories."})
    hub_collection: str | None = field(default=None, metadata={"help": "Title of the family's Collection."})
    hub_layout: str = field(default="repo", metadata={"help": "`repo` or `revision`."})

    def __post_init__(self):
        super().__post_init__()
        self.distance  # noqa: B018 - refuses unknown distances and parameters
        self.budget  # noqa: B018 - refuses impossible budgets now, not after an hour
        _one_of("reference", self.reference, ("origin", "previous"))
        _one_of("sparse_format", self.sparse_format, SPARSE_FORMATS)
        _one_of("hub_layout", self.hub_layout, ("repo", "revision"))
        _one_of("anchor_cache_dtype", self.anchor_cache_dtype, CACHE_DTYPES)
        _one_of("solver", self.solver, ("penalty", "trust_region"))
        if self.solver == "trust_region":
            self._only_exact_steps()
        if self.sparse_format == "structured" and self.step_norm is not None:
            # A resumed run compares its weights with those of its last node, which would be smaller.
            raise InputError("sparse_format='structured' and step_norm exclude each other; use path_points")
        if self.push_to_hub:
            raise InputError("push_to_hub=True publishes single checkpoints; use push_path_to_hub=True for the path")
        for name in ("beta", "step_norm", "anchor_batch_size", "anchor_positions", "anchor_cache_limit_gb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name}={value!r} has to be above 0")
        for name in ("anchor_label_weight", "anchor_prediction_weight", "restoration_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)!r} must not be negative")
        if not 0 <= self.calibration_share < 1:
            raise InputError(f"calibration_share={self.calibration_share!r} has to be a share, from 0 to below 1")
        if self.path_points < 1:
            raise InputError(
                f"path_points={self.path_points!r}: the end of the path is always recorded, use 1 or more"
            )

    def _only_exact_steps(self) -> None:
        """Nothing may change the exact steps after they are solved for, or they are none."""
        if self.optim == type(self).__dataclass_fields__["optim"].default:
            self.optim = OptimizerNames.SGD
        refused = {
            "optim": self.optim != OptimizerNames.SGD,
            "optim_args": bool(self.optim_args),
            "weight_decay": self.weight_decay != 0,
            "max_grad_norm": 0 < (self.max_grad_norm or 0) < 1,
            "fp16": self.fp16,
            "functional_distance": self.functional_distance not in ("l2", "kl"),
        }
        ways_out = {"optim": "'sgd'", "max_grad_norm": "0", "fp16": "bf16 or float32", "functional_distance": "'l2'"}
        for name, unfit in refused.items():
            if unfit:
                raise InputError(
                    f"{name}={getattr(self, name)!r} does not go with solver='trust_region', whose steps are exact; "
                    f"use {ways_out.get(name, 'the default')}, or solver='penalty'"
                )
        self.max_grad_norm = 0.0

    def check_data(self, train_dataset: Any, anchor_dataset: Any, heldout_dataset: Any) -> None:
        """Refuses data sets with which this run cannot work; each may be `None`."""
        if train_dataset is None and anchor_dataset is None:
            raise InputError("train_dataset and anchor_dataset are both None; pass at least one of them")
        if train_dataset is None and self.max_steps <= 0:
            raise InputError(f"max_steps={self.max_steps}: a path with L = 0 has no epochs, set its length in steps")
        if self.budget and anchor_dataset is None:
            raise InputError("a forgetting budget needs anchor_dataset: inputs on which the function has to be kept")
        if self.calibration_share and not (self.budget and heldout_dataset is not None):
            missing = "heldout_dataset to take it from" if self.budget else "a budget: disagreement_budget=0.02"
            raise InputError(f"calibration_share={self.calibration_share:g} needs {missing}")
        if self.solver == "trust_region" and anchor_dataset is None:
            raise InputError("solver='trust_region' needs anchor_dataset: the metric of eq. 4 is that on the anchors")
        if heldout_dataset is not None and anchor_dataset is None:
            raise InputError("heldout_dataset needs anchor_dataset: it certifies what is kept on the anchors")

    @property
    def distance(self) -> Distance:
        """The functional distance with its parameters."""
        temperature = self.distance_temperature
        options = {} if temperature is None else {"temperature": temperature}
        return get_distance(self.functional_distance, **options)

    @property
    def budget(self) -> Budget:
        """The forgetting budget of the run."""
        return Budget(self.distance_budget, self.disagreement_budget)

    def distance_weight(self, *, with_predictions: bool = False) -> float:
        """
        Weight of the functional distance in the minimised loss, 1 / beta of eq. 4.

        Args:
            with_predictions (`bool`, *optional*, defaults to `False`):
                Whether the anchors' predictions are kept as well.
        """
        if self.beta is not None:
            return 1.0 / self.beta
        if self.budget:
            return self.budget.weight
        return 1.0 / (DEFAULT_BETA_WITH_PREDICTIONS if with_predictions else DEFAULT_BETA)
