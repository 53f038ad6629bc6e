"""The model graph: nodes are complete models in a local folder, edges are the operators that made them."""

from .family import Edge, Family, UnknownNodeError
from .graph import ModelGraph
from .node import Node
from .show import describe, render_tree


__all__ = ["Edge", "Family", "ModelGraph", "Node", "UnknownNodeError", "describe", "render_tree"]
