"""Adaptive diversity promoting training: members that are trained together to be wrong in different ways."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed

from ..ensembles import Ensemble
from ..ensembles.uncertainty import predictive_entropy
from ..errors import InputError
from .ensembles import check_members, train


def adp_loss(log_probabilities: Tensor, labels: Tensor, *, alpha: float = 2.0, beta: float = 0.5) -> Tensor:
    """
    `Σ_k CE_k − alpha · H[p̄] − beta · log det(M̃ᵀ M̃)`, where the columns of M̃ are the members' probabilities of the
    wrong classes, scaled to length 1 (Pang et al., "Improving adversarial robustness via promoting ensemble
    diversity", 2019, eqs. 3 to 6, with their weights).

    Args:
        log_probabilities (`torch.Tensor`): `[members, examples, classes]`.
        labels (`torch.Tensor`): `[examples]`, the right classes.
        alpha (`float`, *optional*, defaults to 2.0): weight of the ensemble's entropy.
        beta (`float`, *optional*, defaults to 0.5): weight of the diversity of wrong answers.

    Returns:
        `torch.Tensor`: a scalar.
    """
    members, examples, classes = log_probabilities.shape
    right = one_hot(labels, classes).bool()
    cross_entropies = -log_probabilities[:, right].sum(0).mean()
    wrong = log_probabilities.exp()[:, ~right].view(members, examples, classes - 1).transpose(0, 1)
    wrong = normalize(wrong, dim=-1)
    # The source's offset: where members agree the determinant is 0.
    offset = 1e-6 * torch.eye(members, device=wrong.device)
    volume = torch.linalg.slogdet(wrong @ wrong.mT + offset).logabsdet
    return cross_entropies - alpha * predictive_entropy(log_probabilities).mean() - beta * volume.mean()


def adaptive_diversity_ensemble(
    make: Callable[[], PreTrainedModel],
    dataset: Dataset,
    args: TrainingArguments,
    *,
    members: int = 3,
    alpha: float = 2.0,
    beta: float = 0.5,
    seed: int = 0,
) -> list[PreTrainedModel]:
    """
    Networks trained together on [`adp_loss`]. A step trains all members, so it costs as many of one network's.

    Args:
        make (`Callable`): makes a fresh classifier from PyTorch's random state.
        dataset (`torch.utils.data.Dataset`): rows of model inputs with `labels`.
        args (`TrainingArguments`): of the training.
        members (`int`, *optional*, defaults to 3): number of members, as in the source; fewer than there are classes,
            since no more wrong answers can be at right angles.
        alpha, beta (`float`, *optional*): as in [`adp_loss`].
        seed (`int`, *optional*, defaults to 0): of the networks and of the order of the data.

    Returns:
        `list[PreTrainedModel]`

    Raises:
        [`~hf_fip.errors.InputError`]: no members, or as many as there are classes.
    """
    check_members(members)
    set_seed(seed)
    ensemble = Ensemble.from_models([make() for _ in range(members)])
    if members >= ensemble.num_labels:
        raise InputError(f"members={members} of {ensemble.num_labels} classes: give fewer members than classes.")

    class Diverse(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            inputs = dict(inputs)
            labels = inputs.pop("labels")
            answers = self.accelerator.unwrap_model(model).member_log_probabilities(**inputs)
            loss = adp_loss(answers, labels, alpha=alpha, beta=beta)
            return (loss, {"logits": answers.mean(0)}) if return_outputs else loss

    train(ensemble, dataset, args, seed=seed, trainer_class=Diverse)
    return list(ensemble.members)
