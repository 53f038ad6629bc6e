"""A network small enough for brute force, as terms see it at the start of a path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from hf_fip.terms import OutputBatch


NODES = 4


class SmallStart:
    """Two layers, `NODES` output nodes of which the first two are old, and random anchors with labels."""

    def __init__(self, tasks: Sequence[int] = (0,) * 6, *, seed: int = 0):
        torch.manual_seed(seed)
        self.model = SmallNetwork()
        self.anchor_tasks = list(tasks)
        self.old_nodes = [0, 1]
        self.inputs = torch.randn(len(tasks), 3, dtype=torch.float64)
        self.labels = torch.randint(0, 2, (len(tasks),))

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def anchor_outputs(self, indices: Sequence[int]) -> OutputBatch:
        indices = list(indices)
        return OutputBatch(
            self.model(self.inputs[indices]),
            labels=self.labels[indices],
            examples=len(indices),
            share=1 / len(self.anchor_tasks),
            tasks=[self.anchor_tasks[i] for i in indices],
        )

    def gradient_of(self, loss: Tensor) -> Tensor:
        """∂loss/∂w as one vector."""
        gradients = torch.autograd.grad(loss, self.parameters, retain_graph=True)
        return torch.cat([gradient.reshape(-1) for gradient in gradients])

    def summed_gradient(self) -> Tensor:
        return torch.cat([p.grad.reshape(-1) for p in self.parameters])


class SmallNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = PreTrainedConfig(num_labels=NODES)
        self.first = nn.Linear(3, 5)
        self.classifier = nn.Linear(5, NODES)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.first(inputs)))
