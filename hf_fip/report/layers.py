"""What compression left of each layer, counted in a node's files: no model is loaded."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from ..errors import InputError
from ..graph.weights import Weight, open_weights, weight_files
from ..storage.encoding import split_name
from ..storage.layout import METHOD, StorageLayout, StructureGroup


if TYPE_CHECKING:
    from hf_fip.graph import ModelGraph, Node

logger = logging.get_logger(__name__)

# Networks that nobody compressed hold a few exact zeros: the row of the padding token, a border of an image.
FEW_ZEROS = 0.01
SHARED_BY_MOST = 0.9
# Also the errors that a stranger's configuration makes Transformers stumble over.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)
CONTENTS = {"codes": "8-bit integers", "nibbles": "4-bit integers", "bitmask": "bitmask", "gaps": "gaps"}


@dataclass(frozen=True)
class Layer:
    """
    One weight tensor that compression may change.

    Args:
        name (`str`): The weight's name in the model, without `.weight`.
        shape (`tuple[int, ...]`): Its shape; where structures were removed, the one it had before.
        kept (`int`): How many of its weights are not zero.
    """

    name: str
    shape: tuple[int, ...]
    kept: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        return sparsity([self])


@dataclass(frozen=True)
class Architecture:
    """
    What is known of a network before any weight is read.

    Args:
        prunable (`dict[str, str]`): The weights that compression may change, by name, and their names in the files.
        matrices (`dict[str, str]`): The same of all weights of at least two dimensions.
        groups (tuple of [`StructureGroup`]): Its heads, neurons and filters, if they are known.
        pixels (`tuple[int, int, int]`, *optional*): Channels, height and width of the images it reads.
    """

    prunable: dict[str, str]
    matrices: dict[str, str]
    groups: tuple[StructureGroup, ...]
    pixels: tuple[int, int, int] | None


def is_compressed(node: Node) -> bool:
    """Whether an operator compressed the node, or zeros of an earlier one are left in it."""
    return node.operator == "Compression" or node.sparsity >= FEW_ZEROS


def compressed_nodes(graph: ModelGraph) -> list[Node]:
    """The nodes that `Compression` made, and the ends of other branches that are sparse too, in the graph's order."""
    ends = set(graph.endpoints.values())
    found = [n for n in graph.nodes.values() if n.folder is not None and is_compressed(n)]
    return [node for node in found if (node.operator == "Compression" or node.id in ends) and layers_of(graph, node)]


def fewer(graph: ModelGraph, nodes: list[Node], most: int) -> list[Node]:
    """At most so many of the nodes: where there are more, ends of branches only."""
    ends = set(graph.endpoints.values())
    chosen = nodes if len(nodes) <= most else [node for node in nodes if node.id in ends]
    return chosen[:most]


def dense_ancestor(graph: ModelGraph, node: Node) -> Node | None:
    """The last node before the first compression on the way to `node`."""
    return next((n for n in reversed(graph.lineage(node)) if n.folder is not None and not is_compressed(n)), None)


def layers_of(graph: ModelGraph, node: Node) -> tuple[Layer, ...]:
    """
    The layers of a node that compression may change, as the last `Compression` on the way to it chose them.

    Returns:
        `tuple` of [`Layer`] in the model's order; of a network whose class is not known, all weights of at least two
        dimensions; empty for files that cannot be read.
    """
    made_by = [n for n in graph.lineage(node) if n.operator == "Compression"]
    return _layers(node.folder, node.task, *_patterns(made_by[-1].parameters if made_by else {}))


def sparsity(layers: Sequence[Layer]) -> float:
    """Share of zeros among the weights of some layers."""
    size = sum(layer.size for layer in layers)
    return 1 - sum(layer.kept for layer in layers) / size if size else 0.0


def target_of(node: Node) -> float | None:
    """The share of zeros the node was made for, or `None` if no `Compression` made it."""
    record = node.protocol.get("compression")
    target = record.get("target") if isinstance(record, dict) and node.operator == "Compression" else None
    return float(target) if isinstance(target, (int, float)) and 0 <= target <= 1 else None


def structures_of(node: Node) -> list[StructureGroup]:
    """The heads, neurons and filters of a node that has lost some; empty for other nodes."""
    try:
        left = {group.modules: group for group in _storage_layout(node.folder).groups}
    except InputError as error:
        logger.warning(f"Structures are not shown: {node.folder}: {error}")
        return []
    known = architecture(node.folder, node.task)
    every = known.groups if left and known is not None else ()
    return [left.pop(group.modules, group) for group in every] + list(left.values())


def ranks_of(node: Node) -> dict[str, int]:
    """The rank of each layer whose rank was lowered, by the layer's name; empty for other nodes."""
    record = node.protocol.get("compression")
    ranks = record.get("ranks") if isinstance(record, dict) and node.operator == "Compression" else None
    if not isinstance(ranks, dict):
        return {}
    return {str(name).removesuffix(".weight"): rank for name, rank in ranks.items() if type(rank) is int}


def target_words(node: Node) -> str:
    """The set a node was compressed to, in words; of other operators' nodes, whether they kept the zeros."""
    projection = node.parameters.get("projection") if node.operator == "Compression" else None
    if not isinstance(projection, dict):
        return "zeros kept" if node.protocol.get("zeros_kept") else "–"
    given = {str(key): value for key, value in projection.items() if key != "name"}
    name = str(projection.get("name", ""))
    match name, given:
        case "n:m", {"n": n, "m": m}:
            return f"{n}:{m}"
        case "quantization", {"bits": bits}:
            return f"int{bits}"
        case "block", {"rows": rows, "columns": columns}:
            return f"blocks of {rows} × {columns}"
        case "low_rank", _ if (target := target_of(node)) is not None:
            return f"low rank: {1 - target:.0%} of it"
        case "unstructured", {"scope": "layer"}:
            return "unstructured, each layer"
    return name.replace("_", " ")


def weight_bytes(node: Node) -> int:
    """Bytes of the files with the node's weights; 0 if there are none."""
    try:
        return sum(file.stat().st_size for file in weight_files(node.folder))
    except UNREADABLE:
        return 0


def storage_words(node: Node) -> str:
    """How the node's compressed weights are stored, in words."""
    parts: set[str | None] = set()
    try:
        for path in weight_files(node.folder):
            with safe_open(path, framework="pt") as file:
                parts |= {split_name(name)[1] for name in file.keys()}
        words = [word for part, word in CONTENTS.items() if part in parts]
        removed = ["structures removed"] if _storage_layout(node.folder).groups else []
    except UNREADABLE:
        return "unreadable"
    return ", ".join([*removed, *words]) or "plain"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names of layers without the parts that nearly all share, where they still differ and still say something."""
    parts = {name: name.split(".") for name in names}
    shared = Counter(part for split in parts.values() for part in set(split) if not part.isdigit())
    most = {part for part, count in shared.items() if count > SHARED_BY_MOST * len(parts)}
    short = {}
    for name, split in parts.items():
        told = [part for part in split if part not in most]
        short[name] = ".".join(part for part, before in zip(told, ["", *told], strict=False) if part != before)
    says_something = all(any(part.strip("0123456789") for part in text.split(".")) for text in short.values())
    return short if says_something and len(set(short.values())) == len(short) else {name: name for name in names}


def _patterns(parameters: dict[str, Any]) -> list[tuple[str, ...]]:
    found = (parameters.get(name) for name in ("include", "exclude"))
    return [tuple(map(str, patterns)) if isinstance(patterns, list) else () for patterns in found]


@lru_cache(maxsize=512)
def _layers(folder: Path, task: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> tuple[Layer, ...]:
    # Nodes never change, so what was counted once holds.
    known = architecture(folder, task, include, exclude)
    layers = []
    try:
        with ExitStack() as stack:
            stored = {n: w for n, w in open_weights(folder, stack).items() if len(w.shape) > 1 and w.is_floating_point}
            names = known.prunable if known is not None else {}
            if not stored.keys() & set(names.values()):
                names = {name: name for name in stored}
            for name, source in names.items():
                if source in stored:
                    weight = stored[source]
                    layers.append(Layer(name.removesuffix(".weight"), tuple(weight.shape), _kept(weight)))
    except UNREADABLE as error:
        logger.warning(f"Left out of the pictures of sparsity: {folder} cannot be read ({error}).")
        return ()
    return tuple(layers)


def _kept(weight: Weight) -> int:
    return sum(int(torch.count_nonzero(weight.read(*span))) for span in weight.spans(0, weight.rows))


def architecture(
    folder: Path, task: str, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()
) -> Architecture | None:
    """The architecture that a node's configuration names; `None` for an unknown one, and for adapters."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        config.pop("quantization_config", None)
        return _architecture(json.dumps(config, sort_keys=True), task, include, exclude)
    except UNREADABLE as error:
        logger.debug(f"{folder}: its network is not known ({error}).")
        return None


@lru_cache(maxsize=64)
def _architecture(config_text: str, task: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> Architecture:
    # Importing models takes seconds; the report on a graph without compressed nodes does without.
    from transformers import AutoConfig

    from ..models.loading import AUTO_CLASSES
    from ..objectives.prunable import prunable_weights
    from ..storage.conversions import stored_names
    from ..storage.structures import structure_groups

    config = AutoConfig.for_model(**json.loads(config_text))
    with torch.device("meta"):
        model = AUTO_CLASSES[task].from_config(config, trust_remote_code=False)
    matrices = [name for name, weight in model.named_parameters() if weight.ndim > 1]
    stored = {name: source for name, source in stored_names(model, matrices).items() if source is not None}
    prunable = prunable_weights(model, include, exclude)
    size = getattr(config, "image_size", None)
    sizes = (getattr(config, "num_channels", 1), *(size if isinstance(size, (list, tuple)) else (size, size)))
    return Architecture(
        prunable={name: source for name, source in stored.items() if name in prunable},
        matrices=stored,
        groups=tuple(structure_groups(model)),
        pixels=sizes if all(isinstance(number, int) for number in sizes) and len(sizes) == 3 else None,
    )


def _storage_layout(folder: Path) -> StorageLayout:
    try:
        content = json.loads((folder / "config.json").read_bytes()).get("quantization_config")
    except UNREADABLE:
        return StorageLayout()
    is_ours = isinstance(content, dict) and content.get("quant_method") == METHOD
    return StorageLayout.from_dict(content) if is_ours else StorageLayout()
