"""What the package's own networks for images have in common: input check, loss, output, initialisation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput


@strict
class ImageNetworkConfig(PreTrainedConfig):
    r"""
    What the configurations of the package's own networks have in common.

    Args:
        num_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        image_size (`int`, *optional*, defaults to 28):
            Height and width of the images, in pixels.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the rows that are added when the classifier grows; how a fresh network starts is
            its class's matter.
    """

    num_channels: int = 1
    image_size: int = 28
    initializer_range: float = 0.02


class ImageNetwork(PreTrainedModel, ABC):
    """
    A network for images that ends in the linear layer `classifier`. Subclasses say what that layer reads.

    A fresh network is initialised as PyTorch initialises its layers (Kaiming uniform); convolutions without a bias,
    which are those before a batch norm, with normal filters of variance 2 / fan-in (He et al., 2015).

    Args:
        config ([`ImageNetworkConfig`]): sizes of the layers and the labels.
    """

    config: ImageNetworkConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"
    _no_split_modules: list[str] = []

    def __init__(self, config: ImageNetworkConfig):
        super().__init__(config)
        self.num_labels = config.num_labels

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Conv2d) and module.bias is None:
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    @abstractmethod
    def features(self, pixel_values: Tensor) -> Tensor:
        """
        What the classifier reads.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, image_size, image_size)`): images.

        Returns:
            `torch.Tensor` of shape `(batch, features)`.
        """

    def chains(self) -> list[list[str]]:
        """
        Where structures can be taken out: rows of modules with a ReLU between any two layers (convolutions and linear
        layers), in which each layer is all that reads the one before it, and a batch norm belongs to the layer before.

        Returns:
            `list[list[str]]`: names of modules, from input to output.
        """
        return []

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutput | tuple:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, image_size, image_size)`):
                Images, normalised by the image processor.
            labels (`torch.Tensor` of shape `(batch,)`, *optional*):
                Class indices. With them the output holds the mean cross-entropy as `loss`.
            return_dict (`bool`, *optional*, defaults to `config.return_dict`):
                Whether to return an [`~transformers.modeling_outputs.ImageClassifierOutput`] or a plain tuple.
            kwargs (additional keyword arguments, *optional*):
                Passed on to the loss, as `num_items_in_batch`.

        Returns:
            [`~transformers.modeling_outputs.ImageClassifierOutput`]: `loss`, and `logits` of shape
            `(batch, num_labels)`.

        Raises:
            `ValueError`: images of another shape than the configuration says.
        """
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}; expected (batch, *{expected}).")
        # Image processors give float32, whatever the weights were loaded as.
        logits = self.classifier(self.features(pixel_values.to(self.dtype)))

        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        if not (self.config.return_dict if return_dict is None else return_dict):
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutput(loss=loss, logits=logits)


def register_network(config_class: type[ImageNetworkConfig], model_class: type[ImageNetwork]) -> None:
    """Makes the Auto classes of transformers know a network by its configuration's `model_type`."""
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForImageClassification.register(config_class, model_class, exist_ok=True)
