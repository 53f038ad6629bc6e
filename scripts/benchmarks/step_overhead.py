"""
What a step along the path costs, against a plain Trainer step on as many examples.

    python scripts/benchmarks/step_overhead.py [--json] [--models bert vit cnn] [--steps 30] [--rounds 3]

In one run, in turns, each in a process of its own: `plain` (transformers.Trainer on B + A examples), `er` (experience
replay: FIPTrainer on B task examples and A labelled anchors), `fip` (the same on a head half of whose outputs are new,
so that all that keeps a function by default is at work) and `paper` (the way of the paper's public code: a second copy
of the model, whose outputs on the anchors are computed in every step). Ratios are of median step times and of peak
memory above that of the imported libraries; times are not compared between runs. Also: what importing hf_fip adds to
importing transformers, and how long recording a point keeps training waiting, against saving and syncing the tensors
alone.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


MODELS = ("bert", "vit", "cnn")
VARIANTS = ("plain", "er", "fip", "paper")
WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", type=int, default=30, help="timed optimizer steps of each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--batch", type=int, default=32, help="B, task examples per step; as many anchors (A)")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        model, variant = options.one
        found = _record_point() if model == "record" else measure(model, variant, options.steps, options.batch)
        print(json.dumps(found))
        return
    # In a process of its own too: a child's peak memory begins with its parent's.
    record_point = _in_a_process("record", "point", options)
    rows = []
    for model in options.models:
        runs: dict[str, list[dict]] = {variant: [] for variant in VARIANTS}
        for _ in range(options.rounds):
            for variant in VARIANTS:
                runs[variant].append(_in_a_process(model, variant, options))
        rows.append(_row(model, runs))
    result = {
        "benchmark": "step_overhead",
        "protocol": {
            "device": rows[0].pop("device"),
            "batch": options.batch,
            "anchors_per_step": options.batch,
            "steps": options.steps,
            "rounds": options.rounds,
            "threads": rows[0].pop("threads"),
        },
        "rows": rows,
        "import_seconds": _import_seconds(),
        "record_point": record_point,
    }
    print(json.dumps(result) if options.json else _table(result))


def _in_a_process(model: str, variant: str, options) -> dict:
    command = [sys.executable, __file__, "--one", model, variant, "--steps", str(options.steps)]
    command += ["--batch", str(options.batch)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def _row(model: str, runs: dict[str, list[dict]]) -> dict:
    step = {name: statistics.median(t for run in found for t in run["step_seconds"]) for name, found in runs.items()}
    memory = {name: min(run["peak_bytes"] for run in found) for name, found in runs.items()}
    first = runs["fip"][0]
    return {
        "model": model,
        "parameters": first["parameters"],
        "fip_over_plain": step["fip"] / step["plain"],
        "fip_over_er": step["fip"] / step["er"],
        "paper_over_plain": step["paper"] / step["plain"],
        "plain_step_seconds": step["plain"],
        "anchor_cache_bytes": first["anchor_cache_bytes"],
        "plain_peak_bytes": memory["plain"],
        "fip_extra_memory": (memory["fip"] - first["anchor_cache_bytes"]) / memory["plain"] - 1,
        "er_extra_memory": memory["er"] / memory["plain"] - 1,
        "paper_extra_memory": memory["paper"] / memory["plain"] - 1,
        "device": first["device"],
        "threads": first["threads"],
    }


def measure(model_name: str, variant: str, steps: int, batch: int) -> dict:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    from hf_fip import FIPConfig, FIPTrainer
    from hf_fip.baselines import METHODS
    from hf_fip.functional import functional_distance

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, task, anchors = _problem(model_name, batch * (steps + WARM_UP), batch)
    base_memory = _peak_bytes(torch)
    options = {
        "max_steps": steps + WARM_UP,
        "per_device_train_batch_size": batch,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }

    class Clock(TrainerCallback):
        def __init__(self):
            self.times = []

        def on_step_begin(self, args, state, control, **kwargs):
            self.began = time.perf_counter()

        def on_optimizer_step(self, args, state, control, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter() - self.began)

    class PaperTrainer(Trainer):
        """Reference outputs by a second network, computed in every step."""

        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            if not hasattr(self, "reference"):
                self.reference, self.position = copy.deepcopy(model).eval(), 0
            rows = [anchors[(self.position + i) % len(anchors)] for i in range(batch)]
            self.position += batch
            rows = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
            held = self._prepare_inputs(self.data_collator(rows))
            with torch.no_grad():
                kept = self.reference(**held).logits
            drift = functional_distance("bhattacharyya", model(**held).logits, kept).mean()
            return model(**inputs).loss + drift

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        if variant in METHODS:
            trainer = FIPTrainer(
                model=model,
                args=FIPConfig(folder, path_points=1, **options),
                train_dataset=task,
                anchor_dataset=anchors,
                terms=METHODS[variant].terms(),
                preserve=METHODS[variant].preserve,
                known_outputs=model.config.num_labels // 2,
                callbacks=[clock],
            )
        else:
            if variant == "plain":
                options["per_device_train_batch_size"] = 2 * batch
            kind = Trainer if variant == "plain" else PaperTrainer
            trainer = kind(
                model=model,
                args=TrainingArguments(folder, logging_nan_inf_filter=False, **options),
                train_dataset=task,
                callbacks=[clock],
            )
        trainer.train()
        if variant not in METHODS:
            # A path's end is on disk; so is theirs, or memory would not compare.
            trainer.save_model()
    return {
        "step_seconds": clock.times[WARM_UP:],
        "peak_bytes": _peak_bytes(torch) - base_memory,
        "anchor_cache_bytes": trainer.preservation.anchors.nbytes if variant in METHODS else 0,
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


def _peak_bytes(torch) -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _problem(name: str, examples: int, batch: int):
    import torch
    from datasets import Dataset
    from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

    from hf_fip.models.cnn import FiveLayerCNNConfig, FiveLayerCNNForImageClassification

    torch.manual_seed(0)
    if name == "bert":
        config = BertConfig(
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=1024,
            vocab_size=8000,
            num_labels=4,
        )
        model = BertForSequenceClassification(config)

        def rows(number: int) -> Dataset:
            tokens = torch.randint(5, 8000, (number, 128))
            columns = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            return Dataset.from_dict({**columns, "labels": torch.randint(4, (number,))}).with_format("torch")
    else:
        if name == "vit":
            config = ViTConfig(
                hidden_size=192,
                num_hidden_layers=12,
                num_attention_heads=3,
                intermediate_size=768,
                image_size=32,
                patch_size=4,
                num_labels=10,
            )
            model, shape = ViTForImageClassification(config), (3, 32, 32)
        else:
            model, shape = FiveLayerCNNForImageClassification(FiveLayerCNNConfig(num_labels=20)), (1, 28, 28)

        def rows(number: int) -> Dataset:
            pixels = torch.rand(number, *shape)
            return Dataset.from_dict({"pixel_values": pixels, "labels": torch.randint(10, (number,))}).with_format(
                "torch"
            )

    # The plain Trainer takes B + A of the same rows per step.
    return model, rows(2 * examples), rows(4 * batch)


def _import_seconds() -> dict:
    def seconds(code: str) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            times.append(time.perf_counter() - began)
        return min(times)

    alone = seconds("import transformers")
    return {"transformers": alone, "hf_fip_adds": seconds("import transformers, hf_fip") - alone}


def _record_point() -> dict:
    """How long recording BERT-base keeps training waiting, against saving and syncing its tensors alone; medians."""
    import torch
    from datasets import Dataset
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForSequenceClassification, TrainerCallback
    from transformers.utils import logging

    from hf_fip import FIPConfig, FIPTrainer

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = BertForSequenceClassification(BertConfig())
    task = Dataset.from_dict({"input_ids": torch.randint(5, 8000, (64, 128)), "labels": torch.randint(2, (64,))})
    waits: dict[bool, list[float]] = {True: [], False: []}

    class Clock(TrainerCallback):
        """From the end of one optimizer step to the beginning of the next, with and without a point between."""

        def on_optimizer_step(self, args, state, control, **kwargs):
            self.ended = time.perf_counter()

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step:
                waits[state.global_step % 4 == 0].append(time.perf_counter() - self.ended)

    written = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        config = FIPConfig(
            folder,
            path_points=5,
            max_steps=20,
            per_device_train_batch_size=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = FIPTrainer(model=model, args=config, train_dataset=task, callbacks=[Clock()])
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
        size = (trainer.graph.root.folder / "model.safetensors").stat().st_size
        for number in range(5):
            file = Path(folder) / f"{number}.safetensors"
            began = time.perf_counter()
            save_file(model.state_dict(), file)
            with open(file, "rb") as written_file:
                os.fsync(written_file.fileno())
            written.append(time.perf_counter() - began)
    blocked = statistics.median(waits[True]) - statistics.median(waits[False])
    return {"bytes": size, "blocked_over_writing_bytes": blocked / statistics.median(written)}


def _table(result: dict) -> str:
    protocol = result["protocol"]
    lines = [
        f"device {protocol['device']}, {protocol['threads']} threads, B = {protocol['batch']} task examples + "
        f"A = {protocol['anchors_per_step']} anchors against a plain Trainer on B + A; medians of "
        f"{protocol['rounds']} x {protocol['steps']} steps",
        "",
        "| model | weights | step: fip / plain | fip / er | paper's / plain "
        "| memory: plain | fip beyond its cache | er | paper's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['model']} | {row['parameters'] / 1e6:.1f} M | {row['fip_over_plain']:.3f} | "
            f"{row['fip_over_er']:.3f} | {row['paper_over_plain']:.3f} | {row['plain_peak_bytes'] / 1e6:.0f} MB | "
            f"{row['fip_extra_memory']:+.1%} | {row['er_extra_memory']:+.1%} | {row['paper_extra_memory']:+.1%} |"
        )
    added, point = result["import_seconds"]["hf_fip_adds"], result["record_point"]
    lines += [
        "",
        f"`import hf_fip` adds {added:.2f} s to `import transformers`.",
        f"Recording a point of {point['bytes'] / 1e6:.0f} MB keeps training waiting "
        f"{point['blocked_over_writing_bytes']:.2f} x as long as saving and syncing its tensors takes.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
