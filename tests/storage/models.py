"""Sparse, structured and quantized models of a size at which files are mostly weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from hf_fip.storage import structure_groups


BERT = {
    "vocab_size": 600,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.3,
}
VIT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,
}


def bert(**config) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**{**BERT, **config})).eval()


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**VIT)).eval()


def words() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(5, 600, (3, 10), generator=torch.Generator().manual_seed(1))}


def pixels(size: int = 32, channels: int = 3) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(1))}


@torch.no_grad()
def sparsify(model: PreTrainedModel, sparsity: float) -> PreTrainedModel:
    """Random zeros in all weight matrices, embeddings included."""
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.masked_fill_(torch.rand(weight.shape) < sparsity, 0.0)
    return model


@torch.no_grad()
def quantize(model: PreTrainedModel, levels: int = 127) -> PreTrainedModel:
    """Weight matrices on a symmetric grid, one scale per output channel."""
    for weight in model.parameters():
        if weight.dim() > 1:
            scale = weight.flatten(1).abs().amax(1).clamp_min(1e-30).div(levels).view(-1, *[1] * (weight.dim() - 1))
            weight.copy_((weight / scale).round() * scale)
    return model


@torch.no_grad()
def silence(model: PreTrainedModel, share: float = 0.5) -> PreTrainedModel:
    """Zeros in all weights of some heads, neurons and filters, of each layer but its first."""
    generator = torch.Generator().manual_seed(2)
    for group in structure_groups(model):
        gone = torch.rand(group.count, generator=generator) < share
        gone[0] = False
        for name, unit in group.rows.items():
            module: nn.Module = model.get_submodule(name)
            module.weight[gone.repeat_interleave(unit)] = 0
            if module.bias is not None:
                module.bias[gone.repeat_interleave(unit)] = 0
        for name, unit in group.columns.items():
            model.get_submodule(name).weight[:, gone.repeat_interleave(unit)] = 0
    return model


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
