"""Tiny models, tokenizers and data sets, made in memory from a seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from hf_fip import FIPConfig


ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 64
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def data_root() -> Path | None:
    """Folder of the real data sets, if there is one."""
    folder = Path(os.environ.get("HF_FIP_DATA_ROOT", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


needs_real_data = pytest.mark.skipif(data_root() is None, reason="no real data: set HF_FIP_DATA_ROOT")


def tokenizer() -> PreTrainedTokenizerFast:
    special = {"[PAD]": 0, "[UNK]": 1, "[MASK]": 2}
    words = {f"w{i}": i for i in range(3, VOCABULARY)}
    model = models.WordLevel({**special, **words}, unk_token="[UNK]")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(model), pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"
    )


def texts(number: int, *, seed: int, labels: str | None = "class", longest: int = 12, classes: int = 2) -> Dataset:
    """Random token sequences of different lengths with `class`, `token` or no labels, which can be learned."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        tokens = rng.integers(3, VOCABULARY, rng.integers(4, longest + 1))
        row = {"input_ids": tokens.tolist(), "attention_mask": [1] * len(tokens)}
        if labels == "class":
            row["labels"] = int(tokens[0] % classes)
        elif labels == "token":
            row["labels"] = (tokens % classes).tolist()
        rows.append(row)
    return Dataset.from_list(rows)


def images(number: int, *, seed: int, labels: bool = True, channels: int = 3, size: int = 8) -> Dataset:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, number)
    pixels = rng.normal(size=(number, channels, size, size)) + label[:, None, None, None]
    rows = {"pixel_values": pixels.astype(np.float32).tolist()}
    if labels:
        rows["labels"] = label.tolist()
    return Dataset.from_dict(rows).with_format("torch")


def classifier(*, seed: int = 0, **config) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**{**BERT, "num_labels": 2, "initializer_range": 0.3, **config}))


def case(kind: str) -> dict:
    """Model, data, collator of a kind of model the trainer has to serve, as keyword arguments of FIPTrainer."""
    torch.manual_seed(0)
    words = tokenizer()
    if kind == "sequence-classification":
        return {
            "model": classifier(),
            "train_dataset": texts(32, seed=1),
            "anchor_dataset": texts(12, seed=2, labels=None),
            "processing_class": words,
        }
    if kind == "token-classification":
        return {
            "model": BertForTokenClassification(BertConfig(**BERT, num_labels=3)),
            "train_dataset": texts(32, seed=1, labels="token", classes=3),
            "anchor_dataset": texts(12, seed=2, labels="token", classes=3),
            "data_collator": DataCollatorForTokenClassification(words),
            "processing_class": words,
        }
    if kind == "fill-mask":
        return {
            "model": BertForMaskedLM(BertConfig(**BERT)),
            "train_dataset": texts(32, seed=1, labels=None),
            "anchor_dataset": texts(12, seed=2, labels=None),
            "data_collator": DataCollatorForLanguageModeling(words, mlm_probability=0.4),
            "processing_class": words,
        }
    if kind == "text-generation":
        return {
            "model": GPT2LMHeadModel(
                GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0)
            ),
            "train_dataset": texts(32, seed=1, labels=None),
            "anchor_dataset": texts(12, seed=2, labels=None),
            "data_collator": DataCollatorForLanguageModeling(words, mlm=False),
            "processing_class": words,
        }
    if kind == "image-classification":
        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
        )
        return {
            "model": ViTForImageClassification(config),
            "train_dataset": images(32, seed=1),
            "anchor_dataset": images(12, seed=2, labels=False),
        }
    raise ValueError(kind)


KINDS = ["sequence-classification", "token-classification", "fill-mask", "text-generation", "image-classification"]


def arguments(folder: Path | str, **changes) -> FIPConfig:
    """A short quiet run on the CPU."""
    defaults = {
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "path_points": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 0,
    }
    return FIPConfig(str(folder), **{**defaults, **changes})


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_weights(first: dict, second: dict, *, tolerance: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(
            second[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def run_python(script: Path | str, *args: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh Python process with one thread, output captured."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, str(script), *args], capture_output=True, text=True, env=env, timeout=300)


# Without the interpreter's own end: a thread of gloo may still hold a tensor of the last barrier, wants the
# interpreter's lock to free it, and aborts a process that is ending.
_END_OF_PROCESS = """
if "WORLD_SIZE" in os.environ:
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
"""


def run_processes(number: int, script: Path, source: str, *args: object) -> None:
    """
    Runs Python source, written to `script`, in so many processes of one core each; one without a launcher. The source
    has `os`, `sys` and `torch` imported.
    """
    script.write_text("import os\nimport sys\n\nimport torch\n\ntorch.set_num_threads(1)\n" + source + _END_OF_PROCESS)
    launcher = [] if number == 1 else ["-m", "torch.distributed.run", f"--nproc_per_node={number}", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(script), *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
