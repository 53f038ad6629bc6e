#!/usr/bin/env python
"""
What a full ranking of a family costs, against nothing but the forward passes of its models.

For families of 30 and 300 small BERTs, in one process per family:

- `plain`: one model that is loaded already reads the same batches, as often as the family has nodes, and its losses
  are computed. No files, no weights exchanged, no tokenizer.
- `query`: `hf_fip.query.query` over the family, from the files on the disk to the ranking.
- `forward`: the part of `query` that models and losses take, by a clock inside it.

Both alternate `--rounds` times; `query_over_plain` is the ratio of the medians (`…_cpu`: of the processor time of all
threads), `query_over_forward` compares with what ran at the same time, which other programs' load does not touch, and
`query_over_loading` compares with `from_pretrained` for each node (measured on 10).
`extra_memory_models` is by how many models' weights the process's peak grows from `plain` to `query`. Machines differ:
only the ratios mean something elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


HIDDEN, LAYERS, VOCABULARY = 128, 2, 8000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--nodes", nargs="+", type=int, default=[30, 300], help="sizes of the families")
    parser.add_argument("--texts", type=int, default=128, help="examples of the query")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.texts, options.rounds)))
        return
    rows = [_in_a_process(nodes, options) for nodes in options.nodes]
    protocol = {"texts": options.texts, "rounds": options.rounds, "model": f"BERT {LAYERS} x {HIDDEN}"}
    protocol |= {name: rows[0][name] for name in ("device", "threads")}
    result = {"benchmark": "query", "protocol": protocol, "rows": rows}
    print(json.dumps(result) if options.json else _table(result))


def _in_a_process(nodes: int, options) -> dict:
    command = [sys.executable, __file__, "--one", str(nodes), "--texts", str(options.texts)]
    command += ["--rounds", str(options.rounds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def measure(nodes: int, number: int, rounds: int) -> dict:
    import numpy as np
    import torch
    from transformers.utils import logging

    from hf_fip.query import query
    from hf_fip.query.batches import Batches
    from hf_fip.query.data import load_examples
    from hf_fip.query.encoding import encode_texts
    from hf_fip.query.forward import Forward
    from hf_fip.query.metrics import Head, get_metric, row_losses
    from hf_fip.query.sharing import Processes

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, VOCABULARY - 5, rng.integers(16, 129))) for _ in range(number)]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        graph = _family(Path(folder) / "graph", nodes)
        device = Processes.started().device
        model = graph.root.load_model().eval().to(device)
        size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        settings = {"max_length": 128, "mask_probability": 0.15, "seed": 0}
        encoded = encode_texts(load_examples(texts), graph.root.load_processor(), "fill-mask", **settings)
        batches = Batches(encoded, 0, number, 32)
        metric, forward = get_metric("perplexity"), Forward(device)

        def once() -> None:
            for batch in batches:
                with torch.inference_mode():
                    losses, _ = row_losses(metric, forward(model, batch), batch, Head())
                    losses.sum().item()

        def plain() -> None:
            for _ in range(nodes):
                once()

        def ranking() -> None:
            query(graph, texts, max_length=128, progress=False)

        clock = _clocked_forward()

        def loading() -> None:
            for node in list(graph)[:10]:
                node.load_model()

        once()
        base = _peak_bytes(torch)
        found: dict[str, list[tuple[float, float]]] = {"plain": [], "query": []}
        inside = []
        for _ in range(rounds):
            for name, work in (("plain", plain), ("query", ranking)):
                clock.clear()
                found[name].append(_seconds(work))
            inside.append(found["query"][-1][0] / sum(clock))
        peak = _peak_bytes(torch)
        loaded = _seconds(loading)[0] / min(10, nodes) * nodes
    median = {name: statistics.median(wall for wall, _ in times) for name, times in found.items()}
    cpu = {name: statistics.median(time_of_all for _, time_of_all in times) for name, times in found.items()}
    return {
        "nodes": nodes,
        "parameters": size // 4,
        "query_over_plain": median["query"] / median["plain"],
        "query_over_plain_cpu": cpu["query"] / cpu["plain"],
        "query_over_forward": statistics.median(inside),
        "query_over_loading": median["query"] / (median["plain"] + loaded),
        "plain_seconds": median["plain"],
        "extra_memory_models": (peak - base) / size,
        "extra_memory_bytes": peak - base,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def _clocked_forward() -> list[float]:
    """From now on, the seconds that each batch of a query takes are added to this list."""
    from hf_fip.query.runner import Runner

    seconds: list[float] = []
    add_losses = Runner._add_losses

    def clocked(self, *arguments) -> None:
        began = time.perf_counter()
        add_losses(self, *arguments)
        seconds.append(time.perf_counter() - began)

    Runner._add_losses = clocked
    return seconds


def _seconds(work) -> tuple[float, float]:
    """Wall time, and the processor time of all threads, which other programs disturb less."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def _peak_bytes(torch) -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _family(folder: Path, nodes: int):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    from hf_fip.graph import ModelGraph, Node

    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    words = Tokenizer(models.WordLevel({**special, **{f"w{i}": i + 5 for i in range(VOCABULARY - 5)}}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=128,
    )
    model, graph, parent = BertForMaskedLM(config), ModelGraph(folder), None

    def write(target: Path) -> None:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)

    for place in range(nodes):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.001 * torch.randn(weight.shape))
        node = Node(id=f"node-{place}", parent=parent, operator="noise", step=place, task="fill-mask")
        parent = graph.add(node, write).id
    return graph


def _table(result: dict) -> str:
    protocol = result["protocol"]
    lines = [
        f"{protocol['model']}, {protocol['texts']} texts, {protocol['device']}, {protocol['threads']} threads; "
        f"medians of {protocol['rounds']} rounds",
        "",
        "| nodes | query / plain | in CPU time | query / forward inside | query / loading each node | extra memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['nodes']} | {row['query_over_plain']:.3f} | {row['query_over_plain_cpu']:.3f} | "
            f"{row['query_over_forward']:.3f} | {row['query_over_loading']:.3f} | "
            f"{row['extra_memory_bytes'] / 2**20:.0f} MiB = {row['extra_memory_models']:.1f} models |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
