from __future__ import annotations

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .images import ImageNetwork, ImageNetworkConfig, register_network


@strict
class FiveLayerCNNConfig(ImageNetworkConfig):
    r"""
    Configuration of [`FiveLayerCNNForImageClassification`]. The defaults give the network of the paper's two-task
    experiment: 28 x 28 grey images, two convolutions and two hidden fully connected layers before the classifier.

    Args:
        num_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        image_size (`int`, *optional*, defaults to 28):
            Height and width of the images, in pixels.
        channels (`list[int]`, *optional*, defaults to `(32, 64)`):
            Filters of each convolution. Every convolution is followed by 2 x 2 max pooling and a ReLU.
        kernel_size (`int`, *optional*, defaults to 3):
            Height and width of the filters, in pixels.
        paddings (`list[int]`, *optional*, defaults to `(1, 0)`):
            Zero padding of each convolution, in pixels.
        hidden_sizes (`list[int]`, *optional*, defaults to `(600, 120)`):
            Widths of the fully connected layers before the classifier, each followed by a ReLU.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the rows that are added when the classifier grows; a fresh network is initialised
            as PyTorch initialises its layers (Kaiming uniform).

    Raises:
        `huggingface_hub.errors.StrictDataclassClassValidationError`: `paddings` and `channels` differ in length, or
        the images are too small for the convolutions.
    """

    model_type = "five_layer_cnn"

    channels: list[int] | tuple[int, ...] = (32, 64)
    kernel_size: int = 3
    paddings: list[int] | tuple[int, ...] = (1, 0)
    hidden_sizes: list[int] | tuple[int, ...] = (600, 120)

    def __post_init__(self, **kwargs):
        # Tuples come back from config.json as lists: keep one type so that equal configurations compare equal.
        self.channels = list(self.channels)
        self.paddings = list(self.paddings)
        self.hidden_sizes = list(self.hidden_sizes)
        super().__post_init__(**kwargs)

    @property
    def feature_size(self) -> int:
        """Height and width of the feature maps after the last pooling, in pixels."""
        size = self.image_size
        for padding in self.paddings:
            size = (size + 2 * padding - self.kernel_size + 1) // 2
        return size

    def validate_layers(self):
        """One padding for each convolution, and something left to look at after the last pooling."""
        if len(self.paddings) != len(self.channels):
            raise ValueError(f"paddings={self.paddings}: give one for each of channels={self.channels}.")
        if self.feature_size < 1:
            raise ValueError(f"image_size={self.image_size} is too small for {len(self.channels)} convolutions.")


class FiveLayerCNNForImageClassification(ImageNetwork):
    """
    The five-layer network of the paper's MNIST and Fashion-MNIST experiment (section "FIPs for continual learning"):
    convolutions with 32 and 64 filters, fully connected layers with 600, 120 and `num_labels` nodes, all with ReLU.

    The paper gives the widths and "1.4 million weights" but neither kernel size nor padding. Of the layouts with 3 x 3
    or 5 x 5 kernels and zero or "same" padding, a 3 x 3 one with 6 x 6 feature maps before the first fully connected
    layer comes closest: 1,476,356 weights and biases with 20 labels (1,475,146 with 10).

    Args:
        config ([`FiveLayerCNNConfig`]): sizes of the layers and the labels.
    """

    config: FiveLayerCNNConfig
    config_class = FiveLayerCNNConfig
    base_model_prefix = "cnn"

    def __init__(self, config: FiveLayerCNNConfig):
        super().__init__(config)
        filters = [config.num_channels, *config.channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(filters[i], filters[i + 1], config.kernel_size, padding=padding)
            for i, padding in enumerate(config.paddings)
        )
        widths = [filters[-1] * config.feature_size**2, *config.hidden_sizes]
        self.hidden = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(len(config.hidden_sizes)))
        self.classifier = nn.Linear(widths[-1], config.num_labels)
        self.post_init()

    def features(self, pixel_values: Tensor) -> Tensor:
        states = pixel_values
        for convolution in self.convolutions:
            # ReLU after the pooling: the same function, a quarter of the work.
            states = nn.functional.relu(nn.functional.max_pool2d(convolution(states), 2))
        states = states.flatten(1)
        for layer in self.hidden:
            states = nn.functional.relu(layer(states))
        return states

    def chains(self) -> list[list[str]]:
        convolutions = [f"convolutions.{i}" for i in range(len(self.convolutions))]
        return [[*convolutions, *(f"hidden.{i}" for i in range(len(self.hidden))), "classifier"]]


register_network(FiveLayerCNNConfig, FiveLayerCNNForImageClassification)
