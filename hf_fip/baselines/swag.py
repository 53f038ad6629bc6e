"""Stochastic weight averaging, Gaussian: members drawn from a Gaussian fitted to the weights along training."""

from __future__ import annotations

import copy
from collections import deque

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments, default_data_collator

from ..errors import InputError
from .ensembles import check_members, train


def swag_ensemble(
    model: PreTrainedModel,
    dataset: Dataset,
    args: TrainingArguments,
    *,
    members: int = 10,
    steps: int = 1000,
    every: int = 50,
    rank: int = 20,
    scale: float = 1.0,
    seed: int = 0,
) -> list[PreTrainedModel]:
    """
    From a trained network on at a constant learning rate; the weights met every few steps give a mean, variances and
    the last deviations from the running mean, and the members are drawn from the Gaussian with half of the diagonal
    and half of the low-rank covariance (Maddox et al., "A simple baseline for Bayesian uncertainty in deep learning",
    2019, eq. 1 and algorithm 1). Batch norms take the statistics of the training data anew.

    Args:
        model (`PreTrainedModel`): the trained network; left as it is.
        dataset (`torch.utils.data.Dataset`): rows of model inputs with `labels`.
        args (`TrainingArguments`): `learning_rate` is the constant one; steps and schedule are set here.
        members (`int`, *optional*, defaults to 10): number of members.
        steps (`int`, *optional*, defaults to 1000): optimizer steps.
        every (`int`, *optional*, defaults to 50): steps between two collected weights.
        rank (`int`, *optional*, defaults to 20): number of deviations kept.
        scale (`float`, *optional*, defaults to 1.0): factor of the covariance's root; the source draws at 1.
        seed (`int`, *optional*, defaults to 0): of the draws.

    Returns:
        `list[PreTrainedModel]`

    Raises:
        [`~hf_fip.errors.InputError`]: no members, or fewer than 2 collected weights.
    """
    check_members(members)
    if every < 1 or steps // every < 2 or rank < 2:
        raise InputError(
            f"steps={steps}, every={every}, rank={rank}: at least 2 weights have to be collected and kept."
        )
    moments = _Moments(every, rank)
    trained = copy.deepcopy(model)
    train(trained, dataset, args, callbacks=[moments], max_steps=steps, lr_scheduler_type="constant", warmup_steps=0)
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(members):
        member = copy.deepcopy(trained)
        torch.nn.utils.vector_to_parameters(moments.draw(generator, scale).to(model.device), member.parameters())
        update_batch_norms_(member, dataset, batch_size=args.per_device_train_batch_size)
        drawn.append(member)
    return drawn


def update_batch_norms_(model: nn.Module, dataset: Dataset, *, batch_size: int, batches: int = 100) -> None:
    """
    Gives batch norms the mean statistics of training batches: those of the weights before do not fit new ones.

    Args:
        model (`nn.Module`): the model; left alone if it has no batch norms.
        dataset (`torch.utils.data.Dataset`): rows of model inputs.
        batch_size (`int`): rows at a time.
        batches (`int`, *optional*, defaults to 100): at most so many batches.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # Without a momentum they take the mean over all batches.
        norm.momentum = None
    model.train()
    device = next(model.parameters()).device
    with torch.no_grad():
        for number, batch in enumerate(DataLoader(dataset, batch_size, collate_fn=default_data_collator)):
            if number == batches:
                break
            model(**{name: value.to(device) for name, value in batch.items() if name != "labels"})
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class _Moments(TrainerCallback):
    """Mean of the weights, sum of their squared deviations from it, and the last deviations from the running mean."""

    def __init__(self, every: int, rank: int):
        self.every = every
        self.count = 0
        self.mean: Tensor | None = None
        self.scatter: Tensor | None = None
        self.deviations: deque[Tensor] = deque(maxlen=rank)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every:
            return
        weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach().float().cpu()
        if self.mean is None:
            self.mean, self.scatter = torch.zeros_like(weights), torch.zeros_like(weights)
        self.count += 1
        before = weights - self.mean
        self.mean += before / self.count
        # Welford's sum: a mean of squares less a squared mean would be rounding, weights moving as little as they do.
        self.scatter += before * (weights - self.mean)
        self.deviations.append(weights - self.mean)

    def draw(self, generator: torch.Generator, scale: float) -> Tensor:
        """Weights from N(mean, ½ diagonal + ½ D Dᵀ / (rank − 1)), flat."""
        diagonal = (self.scatter / self.count).sqrt()
        wide = torch.randn(len(diagonal), generator=generator)
        deep = torch.randn(len(self.deviations), generator=generator)
        low_rank = sum(d * z for d, z in zip(self.deviations, deep, strict=True)) / (len(self.deviations) - 1) ** 0.5
        return self.mean + scale * (diagonal * wide + low_rank) / 2**0.5
