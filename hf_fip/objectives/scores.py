"""What losing a weight would cost: the order in which weights are pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import InputError


# Share of the running mean that a step keeps.
MEMORY = 0.99


class Magnitude:
    """|w|, which needs nothing but the weights."""

    name = "magnitude"
    needs_gradients = False

    def begin(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Called once, with the weights at the start of the path."""

    def observe(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Looks at `p.grad`, once an optimizer step."""

    def values(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Scores, not negative; `None` for magnitudes."""

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what [`~Magnitude.tensors`] returned."""


class Saliency(Magnitude):
    """
    |w · ∂/∂w|, the first-order change of what is minimised (the functional distance, and the task loss if there is
    one), as a running mean over the steps (after Molchanov et al., 2017).
    """

    name = "saliency"
    needs_gradients = True
    memory = MEMORY

    def __init__(self):
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self, weights: Mapping[str, nn.Parameter]) -> None:
        seen = [name for name, weight in weights.items() if weight.grad is not None]
        known, new = ([name for name in seen if (name in self.mean) == is_known] for is_known in (True, False))
        if known:
            self.average(
                [self.mean[name] for name in known],
                [weights[name].detach() for name in known],
                [weights[name].grad for name in known],
            )
        if new:
            first = self.of([weights[name].detach() for name in new], [weights[name].grad for name in new])
            self.mean |= zip(new, first, strict=True)

    def average(self, means: list[Tensor], weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Adds this step's scores to the running means."""
        torch._foreach_lerp_(means, self.of(weights, gradients), 1 - self.memory)

    def of(self, weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """The scores of this step."""
        return torch._foreach_abs(torch._foreach_mul(weights, gradients))

    def values(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return self.mean if self.mean.keys() >= weights.keys() else None

    def tensors(self) -> dict[str, Tensor]:
        return self.mean

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.mean = {name: tensor.clone() for name, tensor in tensors.items()}


class Fisher(Saliency):
    """
    |w| · √E[(∂/∂w)²]: the root of the second-order change, with the mean square of the gradients of what is minimised,
    the functional distance, in place of the curvature (after Theis et al., "Faster gaze prediction with dense networks
    and Fisher pruning", 2018). A running mean over the steps: unlike [`SecondOrder`] it follows the network along the
    path, and costs no pass of its own.
    """

    name = "fisher"
    memory = 0.999

    def average(self, means: list[Tensor], weights: list[Tensor], gradients: list[Tensor]) -> None:
        torch._foreach_mul_(means, self.memory)
        torch._foreach_addcmul_(means, gradients, gradients, value=1 - self.memory)

    def of(self, weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        return torch._foreach_mul(gradients, gradients)

    def values(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        if not self.mean.keys() >= weights.keys():
            return None
        return {name: weight.detach().abs() * self.mean[name].sqrt() for name, weight in weights.items()}


class Movement(Saliency):
    """
    −w · ∂L/∂w: weights that training moves away from zero score high (Sanh et al., 2020). A running mean; pruned
    weights are really zero here and not kept beside their masks, so they come back only as gradients move them.
    """

    name = "movement"

    def of(self, weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        return torch._foreach_neg(torch._foreach_mul(weights, gradients))

    def values(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        if not self.mean.keys() >= weights.keys():
            return None
        lowest = torch.stack([mean.min() for mean in self.mean.values()]).min()
        return {name: mean - lowest for name, mean in self.mean.items()}


class SecondOrder(Magnitude):
    """
    w² g_ii / 2, the second-order change of the functional distance with the diagonal of its metric tensor g at the
    start of the path (after LeCun et al., "Optimal brain damage", 1990).

    Args:
        diagonal (`Callable`): From nothing to the diagonal by name, of the network at the start of the path.
    """

    name = "second_order"

    def __init__(self, diagonal: Callable[[], Mapping[str, Tensor]]):
        self.diagonal_of = diagonal
        self.diagonal: Mapping[str, Tensor] = {}

    def begin(self, weights: Mapping[str, nn.Parameter]) -> None:
        found = self.diagonal_of()
        # Weights that no anchor has moved are still ordered, by their magnitude.
        mean = torch.stack([found[name].mean() for name in weights]).mean()
        self.diagonal = {name: found[name] + 1e-6 * mean + torch.finfo(torch.float32).tiny for name in weights}

    def values(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return {name: weight.detach().square() * self.diagonal[name] / 2 for name, weight in weights.items()}


SCORES = ("magnitude", "saliency", "fisher", "second_order", "movement")


def get_score(name: str, diagonal: Callable[[], Mapping[str, Tensor]] | None = None) -> Magnitude:
    """
    The score of that name.

    Args:
        name (`str`): `"magnitude"`, `"saliency"`, `"fisher"`, `"second_order"` or `"movement"`.
        diagonal (`Callable`, *optional*): What `"second_order"` needs; see [`SecondOrder`].

    Raises:
        [`InputError`]: an unknown name.
    """
    if name == "second_order" and diagonal is not None:
        return SecondOrder(diagonal)
    plain = {score.name: score for score in (Magnitude, Saliency, Fisher, Movement)}
    if name not in plain:
        raise InputError(f"score={name!r} is unknown; choose one of: {', '.join(SCORES)}")
    return plain[name]()


def metric_diagonal(
    model: nn.Module,
    outputs_of: Callable[[int], Tensor | None],
    *,
    probabilities: bool,
    seed: int = 0,
) -> dict[str, Tensor]:
    """
    Estimates the diagonal of the metric tensor of eq. 2, the mean over examples of `sum_o (∂f_o/∂w_i)²` (for distances
    of probabilities: of the Fisher information), without a gradient for each example: squares of the gradient of a sum
    with random signs have the right mean.

    Args:
        model (`nn.Module`): The network.
        outputs_of (`Callable`): From the number of a batch to its outputs `[rows, nodes]`, `None` behind the last.
        probabilities (`bool`): Fisher information instead of `J^T J`.
        seed (`int`, *optional*, defaults to 0): Of the signs.

    Returns:
        `dict[str, torch.Tensor]`: by parameter name.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    diagonal = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    generator = torch.Generator().manual_seed(seed)
    number = examples = 0
    while (outputs := outputs_of(number)) is not None:
        outputs = outputs.float()
        if probabilities:
            log_p = outputs.log_softmax(-1)
            drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).to(outputs.device)
            outputs = log_p.gather(-1, drawn)
        signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
        gradients = torch.autograd.grad((signs * outputs).sum(), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                diagonal[name].add_(gradient.float().square())
        number, examples = number + 1, examples + len(outputs)
    return {name: total / max(1, examples) for name, total in diagonal.items()}
