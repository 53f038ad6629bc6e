"""Units that a network can lose as a whole: attention heads, feed-forward neurons, convolution filters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..forward import base_model


KINDS = ("heads", "neurons", "filters")

# (query, key, value, output) and (into the neurons, out of them), by the names of the layers in Transformers' models.
_ATTENTION = (
    (r"(.*attention\.)self\.query", "self.key", "self.value", "output.dense"),
    (r"(.*attention\.)attention\.query", "attention.key", "attention.value", "output.dense"),
    (r"(.*attention\.)q_proj", "k_proj", "v_proj", "o_proj"),
    (r"(.*attention\.)q_lin", "k_lin", "v_lin", "out_lin"),
)
_FEED_FORWARD = (
    (r"(.*)intermediate\.dense", "output.dense"),
    (r"(.*mlp\.)fc1", "fc2"),
    (r"(.*ffn\.)lin1", "lin2"),
)


@dataclass(frozen=True)
class Units:
    """
    The like units of one layer.

    Args:
        kind (`str`): `"heads"`, `"neurons"` or `"filters"`.
        number (`int`): How many there are.
        members (tuple of `(name, dim, width)`):
            The weights that belong to them: unit `i` owns the indices `i * width … (i + 1) * width` along `dim`.
    """

    kind: str
    number: int
    members: tuple[tuple[str, int, int], ...]

    def mean_squares(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Mean squared score of each unit's weights, `[number]`."""
        total, size = 0.0, 0
        for name, dim, width in self.members:
            squares = scores[name].detach().float().square().movedim(dim, 0).flatten(1)
            total = total + squares.sum(1).view(self.number, width).sum(1)
            size += width * squares.shape[1]
        return torch.as_tensor(total) / size


def find_units(model: nn.Module, names: Sequence[str], kinds: Sequence[str] = KINDS) -> list[Units]:
    """
    The units of a model, all of whose weights may be changed.

    Args:
        model (`nn.Module`): BERT, ViT, DistilBERT and those whose layers are named like theirs, or the package's own
            networks.
        names (sequence of `str`): Weights that may be changed.
        kinds (sequence of `str`, *optional*): Which kinds to look for.

    Raises:
        [`InputError`]: an unknown kind, or a model without units of a kind asked for alone, or without any.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise InputError(f"kinds={list(kinds)!r} of projection 'structured': choose from {', '.join(KINDS)}")
    model = base_model(model)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    found = [*_heads(model, shapes), *_neurons(shapes), *_own_networks(model, shapes)]
    allowed = set(names)
    found = [
        units
        for units in found
        if units.kind in kinds and units.number > 1 and allowed.issuperset(name for name, _, _ in units.members)
    ]
    missing = [kind for kind in kinds if not any(units.kind == kind for units in found)]
    if not found or (missing and set(kinds) != set(KINDS)):
        raise InputError(
            f"projection 'structured': {type(model).__name__} has no {' and no '.join(missing)} that could be pruned; "
            f"choose other kinds (of {', '.join(KINDS)}) or another projection"
        )
    return found


def _heads(model: nn.Module, shapes: dict[str, torch.Size]) -> list[Units]:
    config = getattr(model, "config", None)
    number = getattr(config, "num_attention_heads", None) or getattr(config, "n_heads", None)
    found = []
    for name in shapes:
        for query, *others in _ATTENTION:
            match = re.fullmatch(query + r"\.weight", name)
            key, value, output = (f"{match[1]}{other}.weight" if match else "" for other in others)
            # Fewer keys than queries (grouped queries): a head cannot go alone.
            if not match or not number or not shapes.keys() >= {key, value, output} or shapes[key] != shapes[name]:
                continue
            width = shapes[name][0] // number
            rows = tuple((part, 0, width) for part in (name, key, value))
            found.append(Units("heads", number, (*rows, (output, 1, width))))
    return found


def _neurons(shapes: dict[str, torch.Size]) -> list[Units]:
    found = []
    for name in shapes:
        for into, out in _FEED_FORWARD:
            match = re.fullmatch(into + r"\.weight", name)
            target = f"{match[1]}{out}.weight" if match else ""
            if target in shapes and shapes[target][1] == shapes[name][0]:
                found.append(Units("neurons", shapes[name][0], ((name, 0, 1), (target, 1, 1))))
    return found


def _own_networks(model: nn.Module, shapes: dict[str, torch.Size]) -> list[Units]:
    """Chains of convolutions and fully connected layers, in the order in which the package's networks use them."""
    if not isinstance(getattr(model, "hidden", None), nn.ModuleList):
        return []
    layers = [name for name in shapes if re.fullmatch(r"(convolutions|hidden)\.\d+\.weight|classifier\.weight", name)]
    found = []
    for layer, following in zip(layers, layers[1:], strict=False):
        number = shapes[layer][0]
        kind = "filters" if len(shapes[layer]) == 4 else "neurons"
        # Behind the last convolution each filter is a whole map of inputs.
        width = shapes[following][1] // number
        if width * number == shapes[following][1]:
            found.append(Units(kind, number, ((layer, 0, 1), (following, 1, width))))
    return found
