"""Small families of untrained models in a graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_fip.graph import ModelGraph, Node
from tests.testing_utils import case, tokenizer


def family(
    folder: Path,
    make: Callable[[int], nn.Module],
    number: int = 3,
    *,
    task: str,
    processor: Any = None,
    name: str = "fip",
    spread: float = 0.02,
    **fields: Any,
) -> ModelGraph:
    """A root made by `make(0)`, then a branch of `number - 1` nodes that wanders off from it."""
    graph = ModelGraph(folder)
    generator = torch.Generator().manual_seed(0)
    model, parent = make(0), None
    for place in range(number):
        if place:
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(spread * torch.randn(weight.shape, generator=generator))
        add(graph, f"{name}-{place}", model, processor, task=task, parent=parent, step=place, name=name, **fields)
        parent = f"{name}-{place}"
    return graph


def add(graph: ModelGraph, id: str, model: nn.Module, processor: Any = None, **fields: Any) -> Node:
    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)

    return graph.add(Node(id=id, operator="test", **fields), write)


def model_of(kind: str, seed: int = 0) -> nn.Module:
    """The tiny model of a kind with weights of a size that makes its outputs differ."""
    model = case(kind)["model"]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def sentences(number: int, seed: int = 0, longest: int = 14, vocabulary: int = 64) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(number):
        length = int(torch.randint(2, longest + 1, (), generator=generator))
        made.append(" ".join(f"w{i}" for i in torch.randint(3, vocabulary, (length,), generator=generator).tolist()))
    return made


def words() -> Any:
    """The tokenizer of the tests, splitting at spaces."""
    from tokenizers.pre_tokenizers import Whitespace

    made = tokenizer()
    made.backend_tokenizer.pre_tokenizer = Whitespace()
    return made
