"""
One model object for all nodes of one architecture: only its weights are exchanged, from memory-mapped files.

Which tensor of the files belongs to which parameter is asked of Transformers itself, once for each architecture: it
loads a probe, a set of tensors of the files' names and shapes that are each filled with a number of their own, and the
parameters then hold the numbers of their sources. So names that changed since a model was saved and tied weights need
no rules here. What the probe says is checked against the loaded weights of the first node; where it does not hold
(tensors that are converted or merged on loading, removed heads), and for adapters and other libraries' quantized
models, each node is loaded as usual.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..errors import InputError
from ..graph import Node
from ..graph.weights import open_weights
from ..storage.layout import METHOD
from .labels import CannotScore


logger = logging.get_logger(__name__)

_VOLATILE = ("_name_or_path", "name_or_path", "transformers_version", "id2label", "label2id")
_KEPT = 4


@dataclass(frozen=True)
class Stored:
    """
    A node's weights in memory.

    Args:
        node (`Node`): whose they are.
        key (`str`, *optional*): what nodes of one skeleton share; `None` for nodes that are loaded as usual.
        tensors (`dict[str, Tensor]`): by their names in the files.
    """

    node: Node
    key: str | None
    tensors: dict[str, Tensor]


def read(node: Node) -> Stored:
    """
    A node's weights, downloaded first if need be. Safe in a thread beside the one that computes.

    Raises:
        `InputError`: no readable weights.
    """
    folder = node.files()
    if not is_exchangeable(folder):
        return Stored(node, None, {})
    with ExitStack() as stack:
        weights = open_weights(folder, stack)
        try:
            # Copied, so that the pages are read here and not while the model computes.
            tensors = {name: weight.read().clone() for name, weight in weights.items()}
        except SafetensorError as error:
            raise InputError(f"{folder}: its weights cannot be read ({error}).") from None
    return Stored(node, _key(folder, tensors), tensors)


def is_exchangeable(folder: Path) -> bool:
    """Whether a folder holds a complete model in plain tensors, or in sparse ones that hf_fip packed."""
    if (folder / "adapter_config.json").is_file():
        return False
    config = _config(folder)
    return config is not None and ("quantization_config" not in config or _is_packed(config))


def _config(folder: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def _is_packed(config: dict[str, Any]) -> bool:
    packing = config.get("quantization_config")
    return isinstance(packing, dict) and packing.get("quant_method") == METHOD


def _key(folder: Path, tensors: dict[str, Tensor]) -> str:
    config = {name: value for name, value in _config(folder).items() if name not in _VOLATILE}
    if _is_packed(config):
        config["quantization_config"] = METHOD
    shapes = sorted((name, str(tensor.dtype), list(tensor.shape)) for name, tensor in tensors.items())
    return hashlib.sha256(json.dumps([config, shapes], sort_keys=True).encode()).hexdigest()


class Skeletons:
    """
    Turns stored weights into models that compute, each until the next is asked for.

    Args:
        device (`torch.device`): where they compute.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: OrderedDict[str, tuple[PreTrainedModel, list[tuple[Tensor, str]]]] = OrderedDict()
        self._plain: set[str] = set()

    def model(self, stored: Stored) -> nn.Module:
        """
        The node's model in evaluation mode.

        Raises:
            `CannotScore`: the files lack weights of the model, or it cannot be loaded.
        """
        if stored.key is None or stored.key in self._plain:
            return self._loaded(stored.node)
        if stored.key in self._kept:
            self._kept.move_to_end(stored.key)
            model, weights = self._kept[stored.key]
            _exchange(weights, stored.tensors)
            return model
        model = self._loaded(stored.node)
        sources = tensor_sources(model, stored.tensors)
        if sources is None:
            logger.debug(f"{stored.node.id}: its weights are converted on loading; like nodes are loaded one by one.")
            self._plain.add(stored.key)
            return model
        weights = _weights(model)
        self._kept[stored.key] = (model, [(weights[name], source) for name, source in sources.items()])
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return model

    def _loaded(self, node: Node) -> nn.Module:
        try:
            loaded = node.load_model(output_loading_info=True)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            # What a stranger's configuration makes Transformers stumble over must not end the query of a family.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CannotScore(f"cannot be loaded ({reason[:200]})") from error
        model, report = loaded if isinstance(loaded, tuple) else (loaded, {})
        if missing := sorted(report.get("missing_keys", ())):
            raise CannotScore(f"its files lack {missing[0]} ({len(missing)} such weights)")
        return model.eval().requires_grad_(False).to(self.device)


def tensor_sources(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, str] | None:
    """
    Which tensor of the files each parameter and saved buffer of a model was loaded from.

    Args:
        model (`PreTrainedModel`): a model as loaded.
        tensors (`dict[str, Tensor]`): what was in its files.

    Returns:
        `dict[str, str]`, *optional*: parameter to tensor; `None` if some parameter is not plainly one of the tensors.
    """
    names = sorted(tensors)
    probe = {name: torch.tensor(float(i + 1)).expand(tensors[name].shape) for i, name in enumerate(names)}
    config = copy.deepcopy(model.config)
    # The probe's tensors are not packed.
    config.__dict__.pop("quantization_config", None)
    with torch.random.fork_rng(devices=[]):
        probed = type(model).from_pretrained(None, config=config, state_dict=probe, dtype=torch.float32)
    values = _weights(probed)
    sources: dict[str, str] = {}
    for name, weight in _weights(model).items():
        value = values[name].flatten()[:1].tolist() if name in values else []
        source = names[int(value[0]) - 1] if value and value[0] in range(1, len(names) + 1) else None
        if source is None or not _equal(weight, tensors[source]):
            # Buffers that every model of this configuration has alike need no source.
            if isinstance(weight, nn.Parameter) or not _equal(weight, values[name]):
                return None
            continue
        sources[name] = source
    return sources


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, tied ones once, and the buffers that are saved."""
    saved = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {**dict(model.named_parameters()), **buffers}


def _equal(weight: Tensor, stored: Tensor) -> bool:
    return weight.shape == stored.shape and torch.equal(weight.detach().cpu(), stored.to(weight.dtype))


@torch.no_grad()
def _exchange(weights: list[tuple[Tensor, str]], tensors: dict[str, Tensor]) -> None:
    """Gives each parameter or buffer the values of the tensor of that name; on the CPU without a copy."""
    for weight, source in weights:
        if weight.device.type == "cpu" and weight.dtype == tensors[source].dtype:
            weight.data = tensors[source]
        else:
            weight.copy_(tensors[source])
