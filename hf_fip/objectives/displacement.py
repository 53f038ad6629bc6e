"""How far a network has gone from where its path began: distance, norm and direction, as a whole and by layer."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..forward import base_model
from ..terms import Term


class Displacement(Term):
    """
    Says in each node how far it lies from the start of the path: ‖w − w₀‖ / ‖w₀‖, ‖w‖ / ‖w₀‖ and cosine(w, w₀), of all
    trained weights together and of each layer. A distance alone flatters: most of a long one is often growth, which a
    network of ReLUs hardly notices.

    Args:
        include, exclude (sequence of `str`, *optional*): Which layers; see [`layer_weights`].
    """

    name = "displacement"
    uses_anchors = False

    def __init__(self, *, include: Sequence[str] = (), exclude: Sequence[str] = ()):
        self.include, self.exclude = tuple(include), tuple(exclude)
        self.trained: list[nn.Parameter] = []
        self.layers: dict[str, nn.Parameter] = {}
        self._start: dict[int, Tensor] = {}

    def begin_segment(self, model: nn.Module) -> None:
        if self.trained:
            return
        self.layers = layer_weights(model, self.include, self.exclude)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self._start = {id(p): copied(p) for p in self.trained}

    @torch.no_grad()
    def measured(self) -> dict[str, list[float]]:
        """`distance`, `norm_ratio` and `cosine` of all trained weights, then of each layer; NaN where one is zero."""
        weights = [p.detach().float() for p in self.trained]
        starts = [self._start[id(p)] for p in self.trained]
        products = torch.stack([dot(weight, start) for weight, start in zip(weights, starts, strict=True)])
        squares = torch.stack(torch._foreach_norm(weights)).square()
        start_squares = torch.stack(torch._foreach_norm(starts)).square()
        apart = torch.stack(torch._foreach_norm(torch._foreach_sub(weights, starts))).square()
        place = {id(p): index for index, p in enumerate(self.trained)}
        chosen = [place[id(p)] for p in self.layers.values()]
        sums = torch.stack([torch.cat([v.sum()[None], v[chosen]]) for v in (products, squares, start_squares, apart)])
        product, square, start_square, gap = sums.double().cpu()
        return {
            "distance": (gap / start_square).sqrt().tolist(),
            "norm_ratio": (square / start_square).sqrt().tolist(),
            "cosine": (product / (square * start_square).sqrt()).tolist(),
        }

    def report(self) -> dict[str, Any]:
        """The node's `displacement` record, without unit; nothing at the root, from which it is measured."""
        if not self.trained:
            return {}
        found = self.measured()
        layers = {
            name: {key: values[index] for key, values in found.items()}
            for index, name in enumerate(self.layers, start=1)
        }
        return {"displacement": {**{key: values[0] for key, values in found.items()}, "layers": layers}}

    def logs(self) -> dict[str, float | Tensor]:
        found = self.measured()
        return {"cosine": found["cosine"][0], "norm_ratio": found["norm_ratio"][0]}


def layer_weights(
    model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """
    The matrices and filters in which a network's direction is told: trained tensors of at least two dimensions that
    are not zero, without embeddings (and a decoder of the vocabulary), whose rows for words outside the anchors
    nothing would hold. Biases and norms have one dimension.

    Args:
        model (`nn.Module`): The network, not wrapped.
        include (sequence of `str`, *optional*):
            Patterns of names of trained tensors (`"*.bias"`, `"*.embeddings"`) to take besides.
        exclude (sequence of `str`, *optional*): Patterns of names to leave out besides.

    Returns:
        `dict[str, nn.Parameter]`: by name, in the model's order.

    Raises:
        [`InputError`]: an adapter; a pattern that fits no trained tensor; no layer left.
    """
    if hasattr(model, "peft_config"):
        raise InputError("the model is an adapter (PEFT); merge it into its base first: model.merge_and_unload()")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(_fits(name, pattern) for name in trained):
                raise InputError(
                    f"{argument}={pattern!r} fits none of the model's weights, such as {next(iter(trained), None)!r}"
                )
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decoder = getattr(base_model(model), "get_output_embeddings", lambda: None)()
    if decoder is not None:
        embeddings.add(id(decoder.weight))
    chosen = {}
    for name, p in trained.items():
        by_default = p.ndim >= 2 and id(p) not in embeddings and "embeddings" not in name
        if any(_fits(name, pattern) for pattern in exclude):
            continue
        if by_default or any(_fits(name, pattern) for pattern in include):
            chosen[name] = p
    norms = torch.stack(torch._foreach_norm([p.detach() for p in chosen.values()])).tolist() if chosen else []
    # A tensor of zeros points nowhere.
    chosen = {name: p for (name, p), norm in zip(chosen.items(), norms, strict=True) if norm > 0}
    if not chosen:
        raise InputError(
            f"no layer of {type(model).__name__} is left to look at: of its {len(trained)} trained tensors all are "
            "left out (embeddings, biases and norms are by default) or zero; name some in include"
        )
    return chosen


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def copied(weight: Tensor) -> Tensor:
    """A copy in float32."""
    return weight.detach().to(torch.float32, copy=True)


def dot(first: Tensor, second: Tensor) -> Tensor:
    """Inner product of two tensors of one shape, a scalar."""
    return torch.dot(first.reshape(-1), second.reshape(-1))
