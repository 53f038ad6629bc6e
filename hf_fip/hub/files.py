"""Which files of a node go to the Hub and are taken from it: those by which a model is loaded, and no others."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from ..graph.node import NODE_FILE


CARD_FILE = "README.md"

# Weights in safetensors alone; no pickles, no code, nothing of the optimizer, no arguments of a run.
WEIGHTS = ["model*.safetensors", "adapter_model*.safetensors"]
PATTERNS = [
    *WEIGHTS,
    "*.safetensors.index.json",
    "config*.json",
    "base_config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*.json",
    "tokenizer*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "merges*.txt",
    "vocab.bpe",
    "dict.txt",
    "bpe.codes",
    "spiece.model",
    "spm.model",
    "sentencepiece*.model",
    "source.spm",
    "target.spm",
    "normalizer.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    CARD_FILE,
    NODE_FILE,
]


def is_allowed(name: str) -> bool:
    """
    Whether a file belongs to a published node.

    Args:
        name (`str`): its name, relative to the node's folder.
    """
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in PATTERNS)


def is_weight(name: str) -> bool:
    """Whether a file holds weights."""
    return any(fnmatchcase(name, pattern) for pattern in WEIGHTS)


def node_files(folder: Path) -> dict[str, Path]:
    """
    The files of a node's folder that are published, without its card.

    Args:
        folder (`Path`): the node's folder.

    Returns:
        `dict[str, Path]`: name to file, sorted.
    """
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: path for path in paths if is_allowed(path.name) and path.name != CARD_FILE}
