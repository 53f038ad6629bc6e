"""The model graph: nodes are complete models in a local folder, edges are the operators that made them."""

from .graph import Edge, ModelGraph, UnknownNodeError
from .node import Node
from .show import describe, render_tree


__all__ = ["Edge", "ModelGraph", "Node", "UnknownNodeError", "describe", "render_tree"]
