"""Models that the package makes itself, so that every recipe runs without a network: `embedded:NAME`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from huggingface_hub import constants
from tokenizers import processors
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils import logging

from ..errors import InputError
from .cnn import FiveLayerCNNConfig, FiveLayerCNNForImageClassification
from .lenet import LeNet300100Config, LeNet300100ForImageClassification
from .pretraining import complete_folder, pretrain_masked_lm, train_tokenizer
from .resnet import CifarResNetConfig, CifarResNetForImageClassification
from .vgg import CifarVGGConfig, CifarVGGForImageClassification


logger = logging.get_logger(__name__)

# Part of every key: raise it when the code that makes a model changes what it makes.
_FORMAT = 1

BERT_DEMO = {
    "vocab_size": 2000,
    "config": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 96,
        "initializer_range": 0.08,
    },
    "epochs": 2,
    "learning_rate": 3e-3,
    "seq_length": 96,
    "batch_size": 20,
}
BERT_MINI = {
    "vocab_size": 8000,
    "config": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "max_position_embeddings": 256,
        "initializer_range": 0.08,
    },
    "epochs": 1.5,
    "learning_rate": 2e-3,
    "seq_length": 128,
    "batch_size": 16,
}
GPT2_DEMO = {
    "vocab_size": 2000,
    "config": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 96, "initializer_range": 0.05},
}
GPT2_MINI = {
    "vocab_size": 4000,
    "config": {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.05},
}
# Training texts only: (folder in `data_root`, split).
BERT_MINI_TEXTS = (
    ("imdb_unsupervised", "train"),
    ("wikitext2", "validation"),
    ("yelp_polarity", "train"),
    ("imdb", "train"),
)
CNN = {"num_channels": 1, "image_size": 28, "num_labels": 10}
LENET = {"num_channels": 1, "image_size": 28, "num_labels": 10}
CNN_IMAGES = {"size": 28, "mean": [0.1307], "std": [0.3081]}
RESNET_20 = {"num_channels": 3, "image_size": 32, "depth": 20, "num_labels": 10}
VGG_16 = {"num_channels": 3, "image_size": 32, "num_labels": 10}
# A quarter of the filters: trains on a CPU.
VGG_16_SMALL = {**VGG_16, "stages": [[16] * 2, [32] * 2, [64] * 3, [128] * 3, [128] * 3]}
CIFAR_IMAGES = {"size": 32, "mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616]}
VIT_TINY = {
    "num_channels": 1,
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_labels": 10,
}
VIT_TINY_IMAGES = {"size": 8, "mean": [0.305], "std": [0.376]}

# Networks that are not trained: class, configuration, images.
FRESH = {
    "cnn": (FiveLayerCNNForImageClassification, FiveLayerCNNConfig, CNN, CNN_IMAGES),
    "lenet": (LeNet300100ForImageClassification, LeNet300100Config, LENET, CNN_IMAGES),
    "resnet20": (CifarResNetForImageClassification, CifarResNetConfig, RESNET_20, CIFAR_IMAGES),
    "vgg16": (CifarVGGForImageClassification, CifarVGGConfig, VGG_16, CIFAR_IMAGES),
    "vgg16-small": (CifarVGGForImageClassification, CifarVGGConfig, VGG_16_SMALL, CIFAR_IMAGES),
    "vit-tiny": (ViTForImageClassification, ViTConfig, VIT_TINY, VIT_TINY_IMAGES),
}
NAMES = ("bert-demo", "bert-mini", "gpt2-demo", "gpt2-mini", *FRESH)


def build(
    name: str,
    *,
    cache_dir: str | os.PathLike | None = None,
    data_root: str | os.PathLike | None = None,
    seed: int = 0,
) -> Path:
    """
    Make an embedded model, or find it in the cache. Of several processes one makes it and the others wait.

    Args:
        name (`str`):
            `"bert-demo"`: a very small BERT, pre-trained in seconds on the package's own reviews (`embedded:corpus`).
            `"bert-mini"`: a small BERT, pre-trained in minutes on the training texts found in `data_root`:
            `imdb_unsupervised`, `wikitext2` (`validation`), `yelp_polarity` and `imdb`.
            `"gpt2-demo"`, `"gpt2-mini"`: a very small and a small GPT-2, not trained, and tokenizers made from the
            texts of the two above.
            `"cnn"`: the paper's five-layer network for 28 x 28 grey images, not trained.
            `"lenet"`: LeNet-300-100 for 28 x 28 grey images, not trained.
            `"resnet20"`: ResNet-20 for 32 x 32 colour images (CIFAR), not trained.
            `"vgg16"`, `"vgg16-small"`: VGG-16 for such images, with a quarter of the filters where it says so; not
            trained.
            `"vit-tiny"`: a small vision transformer for 8 x 8 grey images, not trained.
        cache_dir (`str` or `os.PathLike`, *optional*, defaults to `$HF_HOME/hf_fip`): where models are kept.
        data_root (`str` or `os.PathLike`, *optional*): folder with local data sets, for `"bert-mini"` and
            `"gpt2-mini"`.
        seed (`int`, *optional*, defaults to 0): seed of the models that are not trained; pre-trained ones keep to
            their recipe's.

    Returns:
        `Path`: a folder with the model and its tokenizer or image processor.

    Raises:
        [`~hf_fip.errors.InputError`]: an unknown name, or `data_root` missing or without any of the texts.
    """
    if name == "bert-demo":
        return _pretrained(name, BERT_DEMO, _demo_texts(), cache_dir)
    if name == "bert-mini":
        return _pretrained(name, BERT_MINI, _mini_texts(name, data_root), cache_dir)
    if name == "gpt2-demo":
        return _causal(name, GPT2_DEMO, _demo_texts(), cache_dir, seed)
    if name == "gpt2-mini":
        return _causal(name, GPT2_MINI, _mini_texts(name, data_root), cache_dir, seed)
    if name in FRESH:
        return _fresh(name, cache_dir, seed)
    raise InputError(f"model='embedded:{name}' does not exist: the embedded models are {', '.join(NAMES)}.")


def image_processor(size: int, mean: list[float], std: list[float]) -> ViTImageProcessorPil:
    """
    An image processor that needs no torchvision, and that `AutoImageProcessor` loads back.

    Args:
        size (`int`): height and width to which images are resized, in pixels.
        mean (`list[float]`): mean of each channel's values, as a share of white.
        std (`list[float]`): their standard deviations, likewise.

    Returns:
        `ViTImageProcessorPil`: turns PIL images, of mode `"L"` for one channel and `"RGB"` for three, into
        `pixel_values` of shape `(batch, channels, size, size)`.
    """
    return ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=mean, image_std=std)


def grey_image_processor(size: int, mean: float, std: float) -> ViTImageProcessorPil:
    """
    An [`image_processor`] for images of one channel.

    Args:
        size (`int`): height and width to which images are resized, in pixels.
        mean (`float`): mean of the grey values, as a share of white.
        std (`float`): their standard deviation, likewise.
    """
    return image_processor(size, [mean], [std])


def _demo_texts() -> list[str]:
    # Imported here: data sets are needed for the pre-trained models only, and their library is slow to import.
    from ..tasks import resolve_dataset

    return resolve_dataset("embedded:corpus")["text"][:]


def _mini_texts(name: str, data_root: str | os.PathLike | None) -> list[str]:
    wanted = ", ".join(folder for folder, _ in BERT_MINI_TEXTS)
    if data_root is None:
        raise InputError(
            f"data_root=None: model='embedded:{name}' is made from local texts; give the folder that holds some of "
            f"{wanted}."
        )
    found = [(Path(data_root, folder), split) for folder, split in BERT_MINI_TEXTS]
    found = [(folder, split) for folder, split in found if folder.is_dir()]
    if not found:
        raise InputError(
            f"data_root={os.fspath(data_root)!r} holds none of the texts for model='embedded:{name}': {wanted}."
        )
    from ..tasks import resolve_dataset

    return [text for folder, split in found for text in resolve_dataset(str(folder), split=split)["text"]]


def _pretrained(name: str, recipe: dict, texts: list[str], cache_dir: str | os.PathLike | None) -> Path:
    def make(folder: Path):
        logger.warning(f"embedded:{name}: pre-training on {len(texts):,} texts, once; it will be kept in {folder}.")
        pretrain_masked_lm(texts, folder, **recipe)

    return _cached(name, _digest([json.dumps(recipe, sort_keys=True), *texts]), cache_dir, make)


def _causal(name: str, recipe: dict, texts: list[str], cache_dir: str | os.PathLike | None, seed: int) -> Path:
    def make(folder: Path):
        tokenizer = train_tokenizer(texts, recipe["vocab_size"], recipe["config"]["n_positions"])
        # A text begins with a token from which its first word is predicted; one that is cut must not seem to end.
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.cls_token_id)]
        )
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
        ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        config = GPT2Config(vocab_size=len(tokenizer), **recipe["config"], **ids)
        with torch.random.fork_rng(), complete_folder(folder) as unfinished:
            torch.manual_seed(seed)
            GPT2LMHeadModel(config).save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)

    return _cached(name, _digest([json.dumps([recipe, seed], sort_keys=True), *texts]), cache_dir, make)


def _fresh(name: str, cache_dir: str | os.PathLike | None, seed: int) -> Path:
    model_class, config_class, recipe, images = FRESH[name]

    def make(folder: Path):
        with torch.random.fork_rng(), complete_folder(folder) as unfinished:
            torch.manual_seed(seed)
            model_class(config_class(**recipe)).save_pretrained(unfinished)
            image_processor(**images).save_pretrained(unfinished)

    return _cached(name, _digest([json.dumps([recipe, images, seed], sort_keys=True)]), cache_dir, make)


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256(str(_FORMAT).encode())
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:12]


def _cached(name: str, key: str, cache_dir: str | os.PathLike | None, make: Callable[[Path], object]) -> Path:
    """The folder `NAME-KEY` in the cache; made by `make` if it is not there. It only ever appears complete."""
    cache = Path(constants.HF_HOME, "hf_fip") if cache_dir is None else Path(cache_dir)
    folder = cache / f"{name}-{key}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache / f".{folder.name}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        logger.warning(f"embedded:{name}: another process is making it; waiting for {folder}.")
        held = lock.acquire()
    with held:
        if not folder.is_dir():
            for leftover in cache.glob(f".{folder.name}.[0-9]*"):
                # Whoever wrote it was killed: nobody else makes this folder while the lock is held.
                shutil.rmtree(leftover, ignore_errors=True)
            make(folder)
    return folder
