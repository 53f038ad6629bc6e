"""What `adversarial_ensemble` attacks: the single network, and ensembles by every method from the same data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_fip.attacks import PixelScale

MEMBERS = 10
ADP_MEMBERS = 3
# Seed of what is no relative of the network under test.
INDEPENDENT = 2000


@dataclass(frozen=True)
class Case:
    """
    A data set, its network and how both are used.

    Args:
        dataset (`str`): Hub id.
        steps (`int`): optimizer steps of a network trained from scratch.
        member_steps (`int`): optimizer steps of the path from one member to the next, and of FGE and SWAG likewise.
        epsilons (`tuple[float, ...]`): largest change of a pixel, from 0 to 1; the middle one is used white-box.
        random_step (`float`): length of the path's random steps.
        distance (`str`): the functional distance that both paths keep small.
        images (`dict`): what the image processor does, and the five-layer network's configuration.
        anchors (`int`, *optional*): inputs on which the path keeps the function.
        anchor_shift (`int`, *optional*): shifted copies of them.
        rates (`dict[str, float]`, *optional*): learning rates of `scratch`, `path` and `cyclic` (FGE and SWAG).
        attacked (`int`, *optional*): test images that are attacked; half of them white-box.
        pgd_steps (`int`, *optional*): gradients of an attack.
        restarts (`int`, *optional*): random starts of a transfer attack.
        batch_size (`int`, *optional*): images of a training step.
        vgg (`bool`, *optional*): VGG-16 in place of the five-layer network.
    """

    dataset: str
    steps: int
    member_steps: int
    epsilons: tuple[float, ...]
    random_step: float
    distance: str
    images: dict[str, Any]
    anchors: int = 5000
    anchor_shift: int = 0
    rates: dict[str, float] = field(default_factory=lambda: {"scratch": 2e-3, "path": 5e-3, "cyclic": 2e-3})
    attacked: int = 500
    pgd_steps: int = 10
    restarts: int = 2
    batch_size: int = 64
    vgg: bool = False

    @property
    def name(self) -> str:
        return self.dataset.split("/")[-1]

    @property
    def middle(self) -> float:
        """The bound of the white-box attack and of FGSM."""
        return self.epsilons[1]

    def network(self) -> PreTrainedModel:
        """A fresh network from PyTorch's random state."""
        from hf_fip import models

        if self.vgg:
            return models.CifarVGGForImageClassification(models.CifarVGGConfig(num_labels=10))
        config = models.FiveLayerCNNConfig(num_labels=10, **self.images["network"])
        return models.FiveLayerCNNForImageClassification(config)


GREY = {
    "network": {"channels": [8, 16], "hidden_sizes": [64, 32]},
    "size": 28,
    "mean": [0.1307],
    "std": [0.3081],
}
COLOUR = {
    "network": {
        "num_channels": 3,
        "image_size": 32,
        "channels": [16, 32],
        "paddings": [1, 1],
        "hidden_sizes": [64, 32],
    },
    "size": 32,
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.2470, 0.2435, 0.2616],
}
MNIST = Case(
    "ylecun/mnist", steps=400, member_steps=90, epsilons=(0.1, 0.15, 0.2), random_step=0.6, distance="l2", images=GREY
)
CIFAR = Case(
    "uoft-cs/cifar10",
    steps=300,
    member_steps=68,
    epsilons=(2 / 255, 4 / 255, 8 / 255),
    random_step=0.65,
    distance="kl",
    anchors=2000,
    anchor_shift=1,
    attacked=400,
    images=COLOUR,
)
VGG = replace(
    CIFAR,
    steps=40_000,
    member_steps=9_000,
    anchors=5000,
    anchor_shift=2,
    rates={"scratch": 1e-3, "path": 1e-3, "cyclic": 5e-4},
    attacked=2000,
    pgd_steps=20,
    batch_size=128,
    vgg=True,
)


@dataclass(frozen=True)
class Data:
    """What networks are trained on, and the images that are attacked, as the networks read them."""

    train: Any
    test_pixels: Tensor
    test_labels: Tensor
    scale: PixelScale


def base_network(case: Case, seed: int, folder: Path, data_root: str | None) -> tuple[Any, Data]:
    """The single network, as root of a graph, and the data."""
    import torch
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from hf_fip import ModelGraph, Task, begin_graph
    from hf_fip.attacks import PixelScale
    from hf_fip.data.features import features

    images = case.images
    processor = ViTImageProcessorPil(
        size={"height": images["size"], "width": images["size"]}, image_mean=images["mean"], image_std=images["std"]
    )
    fresh = folder / "fresh"
    torch.manual_seed(seed)
    case.network().save_pretrained(fresh)
    processor.save_pretrained(fresh)
    task = Task(case.name, case.dataset)
    base = begin_graph(
        ModelGraph(folder / "graph"),
        model=str(fresh),
        task=task,
        training=_training(case, "scratch", case.steps),
        seed=seed,
        data_root=data_root,
    )
    train, test = (features(task.load(split, data_root, seed), processor) for split in ("train", "test"))
    rows = test[:]
    return base, Data(train, rows["pixel_values"], rows["labels"], PixelScale.from_processor(processor))


def _training(case: Case, rate: str, steps: int) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "batch_size": case.batch_size,
        "learning_rate": case.rates[rate],
        "weight_decay": 0.01,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "cosine",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _arguments(case: Case, rate: str, seed: int, folder: Path) -> Any:
    from transformers import TrainingArguments

    from hf_fip.operators.travel import training_arguments

    chosen = training_arguments(_training(case, rate, case.steps))
    return TrainingArguments(str(folder / "trainer"), seed=seed, report_to="none", logging_strategy="no", **chosen)


def trained(case: Case, network: PreTrainedModel, data: Data, seed: int, folder: Path) -> PreTrainedModel:
    from hf_fip.baselines.ensembles import train

    return train(network, data.train, _arguments(case, "scratch", seed, folder))


def ensembles_of(
    case: Case, base: Any, data: Data, seed: int, folder: Path, data_root: str | None
) -> tuple[dict[str, Any], dict[str, int]]:
    """The ensembles, and the training steps each took in all, the single network's included."""
    from hf_fip import Diversification, Ensemble
    from hf_fip.baselines.adaptive_diversity import adaptive_diversity_ensemble
    from hf_fip.baselines.ensembles import independent_networks
    from hf_fip.baselines.fast_geometric import fast_geometric_ensemble
    from hf_fip.baselines.swag import swag_ensemble

    walk = case.member_steps * MEMBERS
    shared = {
        "path_points": MEMBERS,
        "steps": walk,
        "anchors": case.anchors,
        "anchor_shift": case.anchor_shift,
        "functional_distance": case.distance,
        "seed": seed,
        "data_root": data_root,
        "training": {
            "learning_rate": case.rates["path"],
            "batch_size": case.batch_size,
            "save_strategy": "no",
            "disable_tqdm": True,
        },
    }
    single = base.load_model()
    scratch = _arguments(case, "scratch", seed, folder)
    cyclic = _arguments(case, "cyclic", seed, folder)
    cyclic.warmup_steps = 0
    made: dict[str, Callable[[], Any]] = {
        "fip": lambda: Diversification(repulsion=None, random_step=case.random_step, branch="random", **shared)(base),
        "fip, repulsion": lambda: Diversification(away_from="points", **shared)(base),
        "independent": lambda: independent_networks(
            case.network, data.train, scratch, [INDEPENDENT + MEMBERS * seed + i for i in range(MEMBERS)]
        ),
        "fge": lambda: fast_geometric_ensemble(single, data.train, cyclic, members=MEMBERS, cycle=case.member_steps),
        "swag": lambda: swag_ensemble(
            single, data.train, cyclic, members=MEMBERS, steps=walk, every=case.member_steps // 3, seed=seed
        ),
        f"adp, {ADP_MEMBERS} members": lambda: adaptive_diversity_ensemble(
            case.network, data.train, scratch, members=ADP_MEMBERS, seed=INDEPENDENT - 1 - seed
        ),
    }
    ensembles = {"single": Ensemble.from_models([single])}
    for name, make in made.items():
        members = make()
        of_nodes = name.startswith("fip")
        ensembles[name] = Ensemble.from_nodes(members) if of_nodes else Ensemble.from_models(members)
    after = dict.fromkeys(ensembles, case.steps + walk)
    after |= {
        "single": case.steps,
        "independent": MEMBERS * case.steps,
        "fge": case.steps + walk - case.member_steps + case.member_steps // 2,
        f"adp, {ADP_MEMBERS} members": ADP_MEMBERS * case.steps,
    }
    return ensembles, after
