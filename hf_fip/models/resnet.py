from __future__ import annotations

import math

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .images import ImageNetwork, ImageNetworkConfig, register_network


@strict
class CifarResNetConfig(ImageNetworkConfig):
    r"""
    Configuration of [`CifarResNetForImageClassification`]. The defaults give ResNet-20.

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Channels of the images.
        image_size (`int`, *optional*, defaults to 32):
            Height and width of the images, in pixels.
        depth (`int`, *optional*, defaults to 20):
            Layers with weights, 6 n + 2: three stages of n blocks, the first convolution and the classifier.
        width (`int`, *optional*, defaults to 16):
            Filters of the first stage; the second has twice, the third four times as many.
        norm (`str`, *optional*, defaults to `"batch"`):
            `"batch"` norms, or `"group"` norms of up to 8 groups, which have no statistics of the data they were
            trained on: what a network wants that goes on to other data.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the rows that are added when the classifier grows.

    Raises:
        `huggingface_hub.errors.StrictDataclassClassValidationError`: a depth that is not 6 n + 2, or no filters.
    """

    model_type = "cifar_resnet"

    num_channels: int = 3
    image_size: int = 32
    depth: int = 20
    width: int = 16
    norm: str = "batch"

    @property
    def blocks_per_stage(self) -> int:
        """The n of a network of 6 n + 2 layers."""
        return (self.depth - 2) // 6

    def validate_layers(self):
        """A whole number of blocks in each stage, and filters in them."""
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(f"depth={self.depth}: three stages of n blocks have 6 n + 2 layers: 8, 14, 20, 32, ….")
        if self.width < 1:
            raise ValueError(f"width={self.width}: the first stage needs at least 1 filter.")
        if self.norm not in ("batch", "group"):
            raise ValueError(f"norm={self.norm!r} is unknown; choose one of: batch, group.")

    def new_norm(self, filters: int) -> nn.Module:
        """A norm after so many filters."""
        return nn.BatchNorm2d(filters) if self.norm == "batch" else nn.GroupNorm(math.gcd(filters, 8), filters)


class BasicBlock(nn.Module):
    """
    Two 3 x 3 convolutions with norms beside a shortcut without weights: where the block has more filters or
    fewer pixels than its input, every second pixel of the input, and zeros in the new channels.

    Args:
        config (`CifarResNetConfig`): which norms.
        channels (`int`): channels of the input.
        filters (`int`): filters of both convolutions, at least `channels`.
        stride (`int`): of the first convolution and of the shortcut, in pixels.
    """

    def __init__(self, config: CifarResNetConfig, channels: int, filters: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False)
        self.norm1 = config.new_norm(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.norm2 = config.new_norm(filters)

    def forward(self, states: Tensor) -> Tensor:
        """`[batch, channels, size, size]` to `[batch, filters, size / stride, size / stride]`."""
        shortcut = states[:, :, :: self.stride, :: self.stride]
        states = nn.functional.relu(self.norm1(self.conv1(states)))
        states = self.norm2(self.conv2(states))
        added = states.shape[1] - shortcut.shape[1]
        if added:
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, added // 2, added - added // 2))
        return nn.functional.relu(states + shortcut)


class CifarResNetForImageClassification(ImageNetwork):
    """
    The residual network for 32 x 32 images of He et al. (2016), section 4.2, with their option A: shortcuts have no
    weights. With ten labels ResNet-20 has 267,696 filter weights, 269,722 weights, scales and biases in all.

    Args:
        config ([`CifarResNetConfig`]): sizes of the layers and the labels.
    """

    config: CifarResNetConfig
    config_class = CifarResNetConfig
    base_model_prefix = "resnet"

    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        self.convolution = nn.Conv2d(config.num_channels, config.width, 3, padding=1, bias=False)
        self.norm = config.new_norm(config.width)
        self.blocks = nn.ModuleList()
        channels = config.width
        for stage in range(3):
            filters = config.width * 2**stage
            for block in range(config.blocks_per_stage):
                self.blocks.append(BasicBlock(config, channels, filters, stride=2 if stage and not block else 1))
                channels = filters
        self.classifier = nn.Linear(channels, config.num_labels)
        self.post_init()

    def features(self, pixel_values: Tensor) -> Tensor:
        # In this order of memory convolutions of this size take a fifth less time.
        states = pixel_values.contiguous(memory_format=torch.channels_last)
        states = nn.functional.relu(self.norm(self.convolution(states)))
        for block in self.blocks:
            states = block(states)
        return states.mean((2, 3))

    def chains(self) -> list[list[str]]:
        if self.config.norm == "group":
            # A filter less changes what the others of its group are divided by.
            return []
        # The other layers of a stage are tied to one another by the shortcuts.
        return [[f"blocks.{i}.conv1", f"blocks.{i}.norm1", f"blocks.{i}.conv2"] for i in range(len(self.blocks))]


register_network(CifarResNetConfig, CifarResNetForImageClassification)
