"""The perplexity of one model on texts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..errors import InputError
from ..graph import Node
from .queries import query


_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


def perplexity(model: str | os.PathLike[str] | Node, texts: Sequence[str], **settings: Any) -> dict[str, float]:
    """
    The perplexity of a language model on texts, as [`query`] defines it.

    Args:
        model (`str`, `Path` or `Node`): a folder with a model and its tokenizer, a Hub id, or a node of a graph.
        texts (`Sequence[str]`): the texts.
        settings (*optional*): `batch_size`, `max_length`, `mask_probability`, `seed`, `device`, … of [`query`].

    Returns:
        `dict[str, float]`: `perplexity`, `standard_error` and `samples`.

    Raises:
        [`InputError`]: nothing to load there, a model without a perplexity of texts, or fewer than two texts.
    """
    node = model if isinstance(model, Node) else Node(id="model", folder=_folder(os.fspath(model)))
    row = query([node], texts, progress=False, **settings).ranking[0]
    return {"perplexity": row["value"], "standard_error": row["standard_error"], "samples": row["samples"]}


def _folder(source: str) -> Path:
    if os.path.isdir(source):
        return Path(source)
    try:
        return Path(snapshot_download(source, allow_patterns=_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model={source!r}: give a folder with a model, or the id of one on the Hub ({reason})."
        ) from None
