"""
What compressed nodes weigh, how long they take to load, and how much faster structured ones compute.

    python scripts/benchmarks/storage.py [--json] [--model mini base] [--parts files latency] [--rounds 5]

Ratios to the dense node, all measured in one process, in turns. Sizes are those of the weight files, for two choices
of what is pruned: `all` weight matrices, and the `default` of compression, which leaves out embeddings and the head. A
load is `from_pretrained` from a cold page cache (`posix_fadvise`) until every weight has been read once, because
transformers maps dense files into memory and reads them only when they are used. Latency is that of a forward pass
after `shrink` has removed as large a share of the heads and neurons, against the same model with zeros in their place.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path


PARTS = ("files", "latency")
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)
SHARES = (0.25, 0.5, 0.75)
BATCHES = (1, 32)
MODELS = {
    "mini": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "vocab_size": 8000,
    },
    "base": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=list(MODELS), help="size of the BERT")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    parser.add_argument("--rounds", type=int, default=5, help="loads of each file, forward passes of each model")
    parser.add_argument("--length", type=int, default=128, help="tokens of an example")
    parser.add_argument("--folder", help="where files are written; on a disk, not in memory")
    options = parser.parse_args()

    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    rows = []
    for name in options.model:
        if "files" in options.parts:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                rows += storage_rows(name, Path(folder), options.rounds)
        if "latency" in options.parts:
            rows += latency_rows(name, options.rounds, options.length)
    result = {
        "benchmark": "storage",
        "protocol": {
            "models": {name: f"BERT classifier, {_describe(name)}" for name in options.model},
            "rounds": options.rounds,
            "tokens": options.length,
            "threads": torch.get_num_threads(),
            "page_cache": "cold" if hasattr(os, "posix_fadvise") else "warm",
        },
        "rows": rows,
    }
    print(json.dumps(result) if options.json else _table(result))


def storage_rows(name: str, folder: Path, rounds: int) -> list[dict]:
    """Bytes and load time of sparse and quantized files against the dense one."""
    from hf_fip.models import save_model

    dense = folder / "dense"
    original = _model(name)
    original.save_pretrained(dense)
    rows = []
    for pruned in ("all", "default"):
        for sparsity in SPARSITIES:
            model = copy.deepcopy(original)
            _prune(model, sparsity, pruned)
            rows.append({"model": name, "node": "sparse", "pruned": pruned, "sparsity": sparsity})
            save_model(model, folder / "small")
            rows[-1] |= _compare(folder / "small", dense, rounds)
    for bits in (8, 4):
        model = copy.deepcopy(original)
        _quantize(model, bits)
        save_model(model, folder / "small")
        rows.append({"model": name, "node": f"int{bits}", "pruned": "all", "sparsity": 0.0})
        rows[-1] |= _compare(folder / "small", dense, rounds)
    return rows


def latency_rows(name: str, rounds: int, length: int) -> list[dict]:
    """Forward passes of structured models against those with zeros."""
    import torch

    from hf_fip.storage import shrink

    rows = []
    for share in SHARES:
        model = _model(name).eval()
        _silence(model, share)
        smaller = shrink(model)
        for batch in BATCHES:
            words = torch.randint(100, model.config.vocab_size, (batch, length))
            seconds: dict[str, list[float]] = {"zeros": [], "removed": []}
            with torch.no_grad():
                for _ in range(rounds + 1):
                    for key, network in (("zeros", model), ("removed", smaller)):
                        start = time.perf_counter()
                        network(input_ids=words)
                        seconds[key].append(time.perf_counter() - start)
            middle = {key: statistics.median(times[1:]) for key, times in seconds.items()}
            rows.append(
                {
                    "model": name,
                    "node": "structured",
                    "removed": share,
                    "batch": batch,
                    "parameters": smaller.num_parameters() / model.num_parameters(),
                    "latency": middle["removed"] / middle["zeros"],
                    "milliseconds": 1000 * middle["removed"],
                }
            )
    return rows


def _model(name: str):
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**MODELS[name]))


def _describe(name: str) -> str:
    model = _model(name)
    embeddings = sum(weight.numel() for weight in model.bert.embeddings.parameters())
    return f"{model.num_parameters():,} weights, {embeddings / model.num_parameters():.0%} of them embeddings"


def _prune(model, sparsity: float, pruned: str) -> None:
    import torch

    from hf_fip.objectives.prunable import prunable_weights

    matrices = {key: weight for key, weight in model.named_parameters() if weight.dim() > 1}
    chosen = matrices if pruned == "all" else prunable_weights(model)
    with torch.no_grad():
        for weight in chosen.values():
            weight.masked_fill_(torch.rand(weight.shape) < sparsity, 0.0)


def _quantize(model, bits: int) -> None:
    import torch

    from hf_fip.objectives import get_projection

    matrices = {key: weight for key, weight in model.named_parameters() if weight.dim() > 1}
    with torch.no_grad():
        for key, value in get_projection("quantization", bits=bits)(matrices, 1.0).items():
            matrices[key].copy_(value)


def _silence(model, share: float) -> None:
    import torch

    from hf_fip.storage import structure_groups

    with torch.no_grad():
        for group in structure_groups(model):
            gone = torch.randperm(group.count)[: round(share * group.count)]
            for name, unit in group.columns.items():
                columns = (gone[:, None] * unit + torch.arange(unit)).flatten()
                model.get_submodule(name).weight[:, columns] = 0


def _compare(small: Path, dense: Path, rounds: int) -> dict:
    loads: dict[Path, list[tuple[float, float]]] = {dense: [], small: []}
    for _ in range(rounds):
        for folder, times in loads.items():
            times.append(_load(folder))
    wall, cpu = ({folder: statistics.median(t[i] for t in times) for folder, times in loads.items()} for i in (0, 1))
    return {
        "bytes": _bytes(small) / _bytes(dense),
        "megabytes": _bytes(small) / 2**20,
        "load": wall[small] / wall[dense],
        "load_cpu": cpu[small] / cpu[dense],
        "load_seconds": wall[small],
    }


def _load(folder: Path) -> tuple[float, float]:
    """Seconds by the clock, and of the processor, which other programs on the machine disturb less."""
    from transformers import AutoModelForSequenceClassification

    gc.collect()
    for file in folder.glob("*.safetensors"):
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter(), time.process_time()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    total = sum(float(weight.detach().sum()) for weight in model.parameters())
    if total != total:
        sys.exit(f"{folder}: NaN weights")
    return time.perf_counter() - start[0], time.process_time() - start[1]


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _table(result: dict) -> str:
    protocol = result["protocol"]
    lines = [f"`{name}`: {text}." for name, text in protocol["models"].items()]
    lines += [
        f"{protocol['rounds']} rounds, {protocol['threads']} thread(s), {protocol['page_cache']} page cache.",
        "",
    ]
    lines += [
        "| model | node | pruned | sparsity | bytes / dense | MB | load / dense | its processor time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if "bytes" in row:
            lines.append(
                f"| {row['model']} | {row['node']} | {row['pruned']} | {row['sparsity']:.0%} | {row['bytes']:.1%} "
                f"| {row['megabytes']:.1f} | {row['load']:.2f} | {row['load_cpu']:.2f} |"
            )
    lines += ["", "| model | heads and neurons removed | weights left | batch | latency / zeros | ms |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in result["rows"]:
        if "latency" in row:
            lines.append(
                f"| {row['model']} | {row['removed']:.0%} | {row['parameters']:.0%} | {row['batch']} "
                f"| {row['latency']:.2f} | {row['milliseconds']:.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
