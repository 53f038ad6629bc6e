from __future__ import annotations

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .images import ImageNetwork, ImageNetworkConfig, register_network


@strict
class LeNet300100Config(ImageNetworkConfig):
    r"""
    Configuration of [`LeNet300100ForImageClassification`].

    Args:
        num_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        image_size (`int`, *optional*, defaults to 28):
            Height and width of the images, in pixels.
        hidden_sizes (`list[int]`, *optional*, defaults to `(300, 100)`):
            Widths of the fully connected layers before the classifier, each followed by a ReLU.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the rows that are added when the classifier grows; a fresh network is initialised
            as PyTorch initialises its layers (Kaiming uniform).
    """

    model_type = "lenet_300_100"

    hidden_sizes: list[int] | tuple[int, ...] = (300, 100)

    def __post_init__(self, **kwargs):
        # Tuples come back from config.json as lists: keep one type so that equal configurations compare equal.
        self.hidden_sizes = list(self.hidden_sizes)
        super().__post_init__(**kwargs)


class LeNet300100ForImageClassification(ImageNetwork):
    """
    The fully connected network on which sparse networks are compared (LeCun et al., 1998): with ten labels 266,200
    weights and 410 biases.

    Args:
        config ([`LeNet300100Config`]): sizes of the layers and the labels.
    """

    config: LeNet300100Config
    config_class = LeNet300100Config
    base_model_prefix = "lenet"

    def __init__(self, config: LeNet300100Config):
        super().__init__(config)
        widths = [config.num_channels * config.image_size**2, *config.hidden_sizes]
        self.hidden = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(len(config.hidden_sizes)))
        self.classifier = nn.Linear(widths[-1], config.num_labels)
        self.post_init()

    def features(self, pixel_values: Tensor) -> Tensor:
        states = pixel_values.flatten(1)
        for layer in self.hidden:
            states = nn.functional.relu(layer(states))
        return states

    def chains(self) -> list[list[str]]:
        return [[*(f"hidden.{i}" for i in range(len(self.hidden))), "classifier"]]


register_network(LeNet300100Config, LeNet300100ForImageClassification)
