from __future__ import annotations

import math

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput


@strict
class LeNet300100Config(PreTrainedConfig):
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

    num_channels: int = 1
    image_size: int = 28
    hidden_sizes: list[int] | tuple[int, ...] = (300, 100)
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        # Tuples come back from config.json as lists: keep one type so that equal configurations compare equal.
        self.hidden_sizes = list(self.hidden_sizes)
        super().__post_init__(**kwargs)


class LeNet300100ForImageClassification(PreTrainedModel):
    """
    The fully connected network on which sparse networks are compared (LeCun et al., 1998): with ten labels 266,200
    weights and 410 biases.

    Args:
        config ([`LeNet300100Config`]): sizes of the layers and the labels.
    """

    config: LeNet300100Config
    config_class = LeNet300100Config
    base_model_prefix = "lenet"
    main_input_name = "pixel_values"
    _no_split_modules: list[str] = []

    def __init__(self, config: LeNet300100Config):
        super().__init__(config)
        self.num_labels = config.num_labels
        widths = [config.num_channels * config.image_size**2, *config.hidden_sizes]
        self.hidden = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(len(config.hidden_sizes)))
        self.classifier = nn.Linear(widths[-1], config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.bias, -bound, bound)

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
        states = pixel_values.flatten(1)
        for layer in self.hidden:
            states = nn.functional.relu(layer(states))
        logits = self.classifier(states)

        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        if not (self.config.return_dict if return_dict is None else return_dict):
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutput(loss=loss, logits=logits)


AutoConfig.register("lenet_300_100", LeNet300100Config, exist_ok=True)
AutoModelForImageClassification.register(LeNet300100Config, LeNet300100ForImageClassification, exist_ok=True)
