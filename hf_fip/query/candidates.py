"""Which nodes of a family can score the data, and why the others cannot."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data.features import describe_tokenizer
from ..errors import InputError
from ..graph import Node
from ..models.loading import BASE_CONFIG_FILE
from .data import Examples
from .labels import CannotScore, outputs_of_labels
from .metrics import Metric


LANGUAGE = ("fill-mask", "text-generation")
TASKS = {"text": (*LANGUAGE, "sequence-classification"), "image": ("image-classification",)}
_DOWNLOADS = 4
_ARCHITECTURES = {
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "sequence-classification",
    "ForImageClassification": "image-classification",
    "ForTokenClassification": "token-classification",
}
_PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "preprocessor_config.json",
)


@dataclass(frozen=True)
class Candidate:
    """
    A node that can score the data.

    Args:
        node (`Node`): the node.
        task (`str`): what its model is for.
        processor (`str`): key of its tokenizer or image processor among [`Processors`]; equal for equal ones.
        config (`dict`): its model's configuration.
        labels (`list[list[int]]`, *optional*): for each class of the data the outputs that stand for it.
        rule (`str`, *optional*): how the labels were matched.
    """

    node: Node
    task: str
    processor: str
    config: dict[str, Any]
    labels: list[list[int]] | None = None
    rule: str | None = None


@dataclass
class Processors:
    """
    The tokenizers and image processors of a family, each loaded once: told apart by what they do.

    Attributes:
        loaded (`dict[str, Any]`): key to processor.
        longest (`dict[str, float]`): most tokens that all the tokenizers of a key allow.
    """

    loaded: dict[str, Any] = field(default_factory=dict)
    longest: dict[str, float] = field(default_factory=dict)
    _of_files: dict[str, str] = field(default_factory=dict)
    _of_file: dict[tuple, str] = field(default_factory=dict)

    def key(self, node: Node) -> str | None:
        """The key in `loaded` of a node's processor, `None` if it has none; `CannotScore` if it is damaged."""
        folder = node.files(weights=False)
        files = [self._file(folder / name) for name in _PROCESSOR_FILES if (folder / name).is_file()]
        # An adapter's may lie with its base model: loaded to be known.
        state = "".join(files) or str(folder)
        if state not in self._of_files:
            try:
                processor = node.load_processor()
            except Exception as error:
                # The tokenizers library, written in Rust, raises bare exceptions for a damaged file.
                reason = " ".join(str(error).split()) or type(error).__name__
                raise CannotScore(f"its tokenizer or image processor cannot be loaded ({reason[:200]})") from error
            key = "" if processor is None else _behaviour(processor)
            self._of_files[state] = key
            self.loaded.setdefault(key, processor)
            length = getattr(processor, "model_max_length", math.inf)
            self.longest[key] = min(length, self.longest.get(key, math.inf))
        return self._of_files[state] or None

    def _file(self, path: Path) -> str:
        # Files that nodes share are hard links: read once.
        stat = os.stat(path)
        identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if identity not in self._of_file:
            self._of_file[identity] = hashlib.sha256(path.name.encode() + path.read_bytes()).hexdigest()
        return self._of_file[identity]


def _behaviour(processor: Any) -> str:
    is_tokenizer = isinstance(processor, PreTrainedTokenizerBase)
    text = describe_tokenizer(processor) if is_tokenizer else processor.to_json_string()
    return hashlib.sha256(text.encode()).hexdigest()


def candidates(
    nodes: Iterable[Node], examples: Examples, metric: Metric, processors: Processors
) -> tuple[list[Candidate], dict[str, str]]:
    """
    Nodes that can score the data together, so that their values may be compared.

    Models for different tasks have no common scale: those of the most frequent task stay (of equally frequent ones,
    the first node's). Masked language models are compared under one tokenizer, the most frequent: each would have
    other tokens hidden, in other contexts.

    Args:
        nodes (`Iterable[Node]`): the family.
        examples (`Examples`): the data.
        metric (`Metric`): what is measured.
        processors (`Processors`): filled with their tokenizers or image processors.

    Returns:
        `tuple[list[Candidate], dict[str, str]]`: in the given order, and the reason for each of the others, by id.

    Raises:
        [`InputError`]: no node can score the data.
    """
    found: list[Candidate] = []
    reasons: dict[str, str] = {}
    nodes = list(nodes)
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        downloads = {node.id: pool.submit(node.files, weights=False) for node in nodes if node.folder is None}
        for node in nodes:
            try:
                if node.id in downloads:
                    downloads[node.id].result()
                found.append(_candidate(node, examples, metric, processors))
            except (CannotScore, InputError) as reason:
                reasons[node.id] = str(reason)
            except OSError as error:
                reasons[node.id] = f"its files cannot be had ({' '.join(str(error).split())[:200]})"
    found = _most_frequent(found, reasons, lambda one: one.task, "is a {} model; those of the query are {} models")
    if found and (found[0].task == "fill-mask" or (metric.kind == "distance" and found[0].task in LANGUAGE)):
        names = {key: f"of tokenizer {key[:8]}" for key in processors.loaded}
        why = "is a model {}; those of the query are models {}, and different tokens cannot be compared"
        found = _most_frequent(found, reasons, lambda one: names[one.processor], why)
    if not found:
        raise InputError(_nobody(reasons, examples))
    return found, reasons


def _candidate(node: Node, examples: Examples, metric: Metric, processors: Processors) -> Candidate:
    config = _config(node)
    task = _task(node, config)
    if task not in TASKS[examples.modality]:
        raise CannotScore(f"is a model for {task}, which does not score {examples.modality}s")
    if task in LANGUAGE and metric.needs_labels:
        raise CannotScore(f"is a {task} model; {metric.name} is a metric of classifiers")
    processor = processors.key(node)
    if processor is None:
        raise CannotScore(f"has no {'tokenizer' if examples.modality == 'text' else 'image processor'}")
    loaded = processors.loaded[processor]
    if isinstance(loaded, PreTrainedTokenizerBase) != (examples.modality == "text"):
        raise CannotScore(f"has a {type(loaded).__name__}, which does not read {examples.modality}s")
    if task in LANGUAGE:
        if task == "fill-mask" and loaded.mask_token_id is None:
            raise CannotScore("its tokenizer has no mask token")
        return Candidate(node, task, processor, config)
    if metric.kind == "distance":
        return Candidate(node, task, processor, config)
    if examples.labels is None:
        raise CannotScore(f"is a {task} model, and the data have no labels")
    if config.get("problem_type") in ("regression", "multi_label_classification"):
        raise CannotScore(f"its problem_type is {config['problem_type']}, which has no single label")
    labels, rule = outputs_of_labels(node, _id2label(config), examples)
    return Candidate(node, task, processor, config, labels, rule)


def _most_frequent(found: list[Candidate], reasons: dict[str, str], kind: Any, why: str) -> list[Candidate]:
    counts = Counter(kind(one) for one in found)
    if len(counts) < 2:
        return found
    most = max(counts, key=lambda key: counts[key])
    for one in found:
        if kind(one) != most:
            reasons[one.node.id] = why.format(kind(one), most)
    return [one for one in found if kind(one) == most]


def _nobody(reasons: dict[str, str], examples: Examples) -> str:
    if not reasons:
        return "the graph has no nodes to query; add some first."
    reason, times = Counter(reasons.values()).most_common(1)[0]
    first = next(node for node, text in reasons.items() if text == reason)
    others = f" and {times - 1} more" if times > 1 else ""
    return f"no node can score dataset={examples.name!r}: {first}{others} {reason}; give data that suit the models."


def _config(node: Node) -> dict[str, Any]:
    folder = node.files(weights=False)
    for name in ("config.json", BASE_CONFIG_FILE):
        try:
            config = json.loads((folder / name).read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError):
            raise CannotScore(f"its {name} is not readable JSON") from None
        if isinstance(config, dict):
            return config
    if (folder / "adapter_config.json").is_file():
        return node.load_model().get_base_model().config.to_dict()
    raise CannotScore("has no config.json")


def _task(node: Node, config: dict[str, Any]) -> str:
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else ""
    for part, task in _ARCHITECTURES.items():
        if part in str(name):
            return task
    return node.task


def _id2label(config: dict[str, Any]) -> dict[int, str]:
    names = config.get("id2label")
    if isinstance(names, dict) and names:
        try:
            return {int(key): str(value) for key, value in names.items()}
        except ValueError:
            raise CannotScore("its id2label is not numbered") from None
    # Two outputs are what a configuration without names stands for.
    return {0: "LABEL_0", 1: "LABEL_1"}
