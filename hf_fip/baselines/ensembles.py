"""
What an ensemble of path points is compared with: members made by training, with the Trainer's own optimizer and on the
same labelled data. Each function gives the members in evaluation mode; [`~hf_fip.ensembles.Ensemble.from_models`]
makes an ensemble of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from ..errors import InputError


def train(
    model: PreTrainedModel,
    dataset: Dataset,
    args: TrainingArguments,
    *,
    seed: int | None = None,
    trainer_class: type[Trainer] = Trainer,
    callbacks: Sequence[TrainerCallback] = (),
    **changes: Any,
) -> PreTrainedModel:
    """
    Trains a model with its labels, in place.

    Args:
        model (`PreTrainedModel`): the model.
        dataset (`torch.utils.data.Dataset`): rows of model inputs with `labels`.
        args (`TrainingArguments`): how; left as they are.
        seed (`int`, *optional*): in place of `args.seed`.
        trainer_class (`type[Trainer]`, *optional*, defaults to `Trainer`): what trains it.
        callbacks (`Sequence[TrainerCallback]`, *optional*): what watches it.
        changes: further fields of `args` to set.

    Returns:
        `PreTrainedModel`: the same, in evaluation mode.
    """
    args = copy.copy(args)
    for name, value in {**changes, **({} if seed is None else {"seed": seed})}.items():
        setattr(args, name, value)
    trainer_class(model=model, args=args, train_dataset=dataset, callbacks=list(callbacks)).train()
    return model.eval()


def independent_networks(
    make: Callable[[], PreTrainedModel], dataset: Dataset, args: TrainingArguments, seeds: Iterable[int]
) -> list[PreTrainedModel]:
    """
    Networks that differ in their initialisation and in the order of the data (Lakshminarayanan et al., "Simple and
    scalable predictive uncertainty estimation using deep ensembles", 2017, without their adversarial training): the
    paper's "DeepNet ensemble".

    Args:
        make (`Callable`): makes a fresh network from PyTorch's random state.
        dataset (`torch.utils.data.Dataset`): rows of model inputs with `labels`.
        args (`TrainingArguments`): of each training.
        seeds (iterable of `int`): one for each network.

    Returns:
        `list[PreTrainedModel]`
    """
    members = []
    for seed in seeds:
        set_seed(seed)
        members.append(train(make(), dataset, args, seed=seed))
    return members


def check_members(members: int) -> None:
    """Raises [`InputError`] for a number of members that is none."""
    if members < 1:
        raise InputError(f"members={members}: give at least 1.")
