"""Fast geometric ensembling: members along a cyclical learning rate."""

from __future__ import annotations

import copy

from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from ..errors import InputError
from .ensembles import check_members, train


def cyclical_rate(step: int, cycle: int, lowest: float) -> float:
    """
    The learning rate's factor at a step: a line from 1 down to `lowest` in the first half of each cycle and back in
    the second (Garipov et al., 2018, section 4).

    Args:
        step (`int`): from 0.
        cycle (`int`): steps of a cycle.
        lowest (`float`): the lowest factor, reached after half a cycle.
    """
    place = (step % cycle + 1) / cycle
    return lowest + (1 - lowest) * abs(1 - 2 * place)


def fast_geometric_ensemble(
    model: PreTrainedModel,
    dataset: Dataset,
    args: TrainingArguments,
    *,
    members: int = 10,
    cycle: int = 100,
    lowest: float = 0.01,
) -> list[PreTrainedModel]:
    """
    From a trained network on with a learning rate that goes down and up in cycles; a member is taken wherever it is
    lowest (Garipov et al., "Loss surfaces, mode connectivity, and fast ensembling of DNNs", 2018).

    Args:
        model (`PreTrainedModel`): the trained network; left as it is.
        dataset (`torch.utils.data.Dataset`): rows of model inputs with `labels`.
        args (`TrainingArguments`): `learning_rate` is the highest; steps and schedule are set here.
        members (`int`, *optional*, defaults to 10): number of members.
        cycle (`int`, *optional*, defaults to 100): optimizer steps from one member to the next, at least 2.
        lowest (`float`, *optional*, defaults to 0.01): lowest learning rate, as a share of the highest.

    Returns:
        `list[PreTrainedModel]`

    Raises:
        [`~hf_fip.errors.InputError`]: no members, a cycle without halves, or a `lowest` that is no share.
    """
    check_members(members)
    if cycle < 2 or not 0 < lowest <= 1:
        raise InputError(f"cycle={cycle}, lowest={lowest}: give a cycle of at least 2 steps and a share of the rate.")
    snapshots = _Snapshots(cycle)

    class Cyclical(Trainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            if self.lr_scheduler is None:
                self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda s: cyclical_rate(s, cycle, lowest))
            return self.lr_scheduler

    steps = cycle * (members - 1) + cycle // 2
    train(copy.deepcopy(model), dataset, args, trainer_class=Cyclical, callbacks=[snapshots], max_steps=steps)
    return snapshots.members


class _Snapshots(TrainerCallback):
    def __init__(self, cycle: int):
        self.cycle = cycle
        self.members: list[PreTrainedModel] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.cycle == self.cycle // 2:
            self.members.append(copy.deepcopy(model).eval())
