"""What an operator is: it turns a node of a model graph into a path of nodes. Operators compose, right to left."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..graph import Node


@dataclasses.dataclass(frozen=True)
class Path(Sequence):
    """
    The nodes an operator made, in order.

    Args:
        start (`Node`): The node it was applied to.
        nodes (`tuple` of `Node`): The recorded points.
    """

    start: Node
    nodes: tuple[Node, ...]

    @property
    def end(self) -> Node:
        """The last point."""
        return self.nodes[-1]

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, index):
        return self.nodes[index]


class Operator:
    """Turns a node into a path of nodes. `(second @ first)(node)` applies `first`, then `second` to its end."""

    def __call__(self, node: Node) -> Path:
        raise TypeError(f"{type(self).__name__} defines no step from a node; use one of its subclasses")

    def __matmul__(self, first: Operator) -> Compose:
        if not isinstance(first, Operator):
            return NotImplemented
        return Compose(self, first)


class Compose(Operator):
    """
    Operators applied one after the other, the last one first.

    Args:
        operators (`Operator`): As written in `third @ second @ first`.
    """

    def __init__(self, *operators: Operator):
        self.operators = tuple(
            part
            for operator in operators
            for part in (operator.operators if isinstance(operator, Compose) else [operator])
        )

    def __call__(self, node: Node) -> Path:
        nodes: list[Node] = []
        end = node
        for operator in reversed(self.operators):
            path = operator(end)
            nodes += path.nodes
            end = path.end
        return Path(node, tuple(nodes))
