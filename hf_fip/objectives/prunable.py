"""Which weights a projection may change."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from ..errors import InputError
from ..forward import base_model
from ..models.heads import output_head


def prunable_weights(
    model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """
    The weights that are compressed: trained tensors of at least two dimensions, without embeddings and without the
    output head (classifier, or the decoder of a language model). Biases and norms have one dimension and never count.

    Args:
        model (`nn.Module`): The network, not wrapped.
        include (sequence of `str`, *optional*):
            Patterns of names (`"classifier"`, `"*.embeddings.*"`) that are compressed although left out by default.
        exclude (sequence of `str`, *optional*): Patterns of names to leave out besides.

    Returns:
        `dict[str, nn.Parameter]`: by name, in the model's order.

    Raises:
        [`InputError`]: an adapter; a pattern that fits no weight; nothing left to compress.
    """
    if hasattr(model, "peft_config"):
        raise InputError("the model is an adapter (PEFT); merge it into its base first: model.merge_and_unload()")
    weights = {name: p for name, p in model.named_parameters() if p.ndim >= 2 and p.requires_grad}
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in pattern_list(argument, patterns):
            if not any(_fits(name, pattern) for name in weights):
                raise InputError(
                    f"{argument}={pattern!r} fits none of the model's weights, such as {next(iter(weights), None)!r}"
                )
    left_out = _left_out(model)
    chosen = {
        name: p
        for name, p in weights.items()
        if (any(_fits(name, pattern) for pattern in include) or name not in left_out)
        and not any(_fits(name, pattern) for pattern in exclude)
    }
    if not chosen:
        raise InputError(
            f"nothing is left to compress in {type(model).__name__}: of its {len(weights)} weight tensors all are "
            "left out (embeddings and heads are by default); name some in include"
        )
    return chosen


def pattern_list(argument: str, patterns: Sequence[str]) -> list[str]:
    """The patterns, of which a string is none: its letters would be taken for them."""
    if isinstance(patterns, str):
        raise InputError(f"{argument}={patterns!r} has to be a list of patterns of names: [{patterns!r}]")
    return list(patterns)


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def _left_out(model: nn.Module) -> set[str]:
    found = {name for name, _ in model.named_parameters() if "embeddings" in name}
    names = {id(p): name for name, p in model.named_parameters()}
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    decoder = getattr(base_model(model), "get_output_embeddings", lambda: None)()
    if decoder is not None:
        modules.append(decoder)
    elif getattr(getattr(model, "config", None), "num_labels", 0):
        try:
            modules.append(model.get_submodule(output_head(model)))
        except InputError:
            # A network without a head of that shape has none to leave out.
            pass
    return found | {names[id(m.weight)] for m in modules if id(getattr(m, "weight", None)) in names}
