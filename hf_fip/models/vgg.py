from __future__ import annotations

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .images import ImageNetwork, ImageNetworkConfig, register_network


VGG_16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@strict
class CifarVGGConfig(ImageNetworkConfig):
    r"""
    Configuration of [`CifarVGGForImageClassification`]. The defaults give VGG-16.

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Channels of the images.
        image_size (`int`, *optional*, defaults to 32):
            Height and width of the images, in pixels.
        stages (`list[list[int]]`, *optional*, defaults to VGG-16's):
            Filters of each convolution, stage by stage. Every stage ends in 2 x 2 max pooling.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the rows that are added when the classifier grows.

    Raises:
        `huggingface_hub.errors.StrictDataclassClassValidationError`: stages without filters, or more of them than the
        images can be halved.
    """

    model_type = "cifar_vgg"

    num_channels: int = 3
    image_size: int = 32
    stages: list[list[int]] | tuple[tuple[int, ...], ...] = VGG_16

    def __post_init__(self, **kwargs):
        # Tuples come back from config.json as lists: keep one type so that equal configurations compare equal.
        self.stages = [list(stage) for stage in self.stages]
        super().__post_init__(**kwargs)

    @property
    def feature_size(self) -> int:
        """Height and width of the feature maps after the last pooling, in pixels."""
        return self.image_size // 2 ** len(self.stages)

    def validate_layers(self):
        """Filters in every layer of every stage, and something left to look at after the last pooling."""
        if not self.stages or not all(self.stages) or min(min(stage) for stage in self.stages) < 1:
            raise ValueError(f"stages={self.stages}: each stage needs at least one convolution of at least 1 filter.")
        if self.feature_size < 1:
            raise ValueError(f"image_size={self.image_size} cannot be halved in each of {len(self.stages)} stages.")


class CifarVGGForImageClassification(ImageNetwork):
    """
    VGG-16 for 32 x 32 images (Simonyan and Zisserman, 2015, configuration D): thirteen 3 x 3 convolutions, each with
    batch norm and ReLU, and one linear layer in place of their three, as is usual for images of this size. With ten
    labels 14,710,464 filter weights. [`CifarVGGConfig`]'s `stages` make it smaller.

    Args:
        config ([`CifarVGGConfig`]): sizes of the layers and the labels.
    """

    config: CifarVGGConfig
    config_class = CifarVGGConfig
    base_model_prefix = "vgg"

    def __init__(self, config: CifarVGGConfig):
        super().__init__(config)
        filters = [config.num_channels, *(count for stage in config.stages for count in stage)]
        # A batch norm takes back what a bias would add.
        self.convolutions = nn.ModuleList(
            nn.Conv2d(filters[i], filters[i + 1], 3, padding=1, bias=False) for i in range(len(filters) - 1)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in filters[1:])
        self.classifier = nn.Linear(filters[-1] * config.feature_size**2, config.num_labels)
        self.post_init()

    def features(self, pixel_values: Tensor) -> Tensor:
        # In this order of memory convolutions of this size take a fifth less time.
        states = pixel_values.contiguous(memory_format=torch.channels_last)
        layers = iter(zip(self.convolutions, self.norms, strict=True))
        for stage in self.config.stages:
            for _ in stage:
                convolution, norm = next(layers)
                states = nn.functional.relu(norm(convolution(states)))
            states = nn.functional.max_pool2d(states, 2)
        return states.flatten(1)

    def chains(self) -> list[list[str]]:
        layers = (name for i in range(len(self.convolutions)) for name in (f"convolutions.{i}", f"norms.{i}"))
        return [[*layers, "classifier"]]


register_network(CifarVGGConfig, CifarVGGForImageClassification)
