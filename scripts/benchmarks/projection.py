"""
What pulling a network towards its projection costs.

    python scripts/benchmarks/projection.py [--json] [--layers 12] [--batch 8] [--length 64] [--steps 6]

On a model of the shape of BERT-base with random weights, on one device, in one run and in turns, so that ratios can be
compared: (1) the exact global magnitude threshold, and the masks from it, against one pass over the weights (the
magnitude of each weight, written to memory); (2) an optimizer step with the pull, its refreshes included, against a
plain step of forward, backward and AdamW, with the pull decoupled, as a gradient, and held at zero, and decoupled with
the Fisher score, which looks at the gradients. Medians; times of different runs are not compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8, help="examples per step")
    parser.add_argument("--length", type=int, default=64, help="tokens per example")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each kind")
    parser.add_argument("--rounds", type=int, default=7, help="timed passes of each kind")
    parser.add_argument("--refresh", type=int, default=5, help="optimizer steps between two projections")
    parser.add_argument("--sparsity", type=float, default=0.9)
    options = parser.parse_args()
    result = measure(options)
    print(json.dumps(result) if options.json else _table(result))


def measure(options) -> dict:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from hf_fip.objectives import Pull, get_projection
    from hf_fip.objectives.prunable import prunable_weights
    from hf_fip.objectives.scores import get_score
    from hf_fip.objectives.selection import kth_smallest
    from hf_fip.terms import apply_gradient_terms, apply_weight_terms

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=options.layers)).to(device)
    weights = prunable_weights(model)
    values = list(weights.values())
    number = sum(value.numel() for value in values)
    clock = _Clock(device)

    rank = round(options.sparsity * number)
    unstructured = get_projection("unstructured")
    passes: dict[str, Callable[[], object]] = {
        "pass": lambda: [value.detach().abs() for value in values],
        "threshold": lambda: kth_smallest(values, rank),
        "projection": lambda: unstructured.code(weights, options.sparsity),
        "n_of_m": lambda: get_projection("2:4").code(weights, 0.5),
        "int8": lambda: get_projection("int8").code(weights, 1.0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(options.rounds):
        for name, run in passes.items():
            seconds[name].append(clock.time(run))
    one_pass = statistics.median(seconds["pass"])
    projections = {f"{name}_over_pass": statistics.median(times) / one_pass for name, times in seconds.items()}

    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    inputs = torch.randint(1, 30000, (options.batch, options.length), device=device)
    labels = torch.zeros(options.batch, dtype=torch.long, device=device)

    def term(**changes) -> Pull:
        pull = Pull(unstructured, [options.sparsity], [10**6], refresh=10**6, **changes)
        pull.begin_segment(model)
        pull.move_weights_(parameters, 1)
        return pull

    held = term()
    held.frozen = True
    fisher = get_score("fisher")
    terms = {
        "plain": None,
        "decoupled": term(),
        "fisher": term(score=fisher),
        "gradient": term(decoupled=False),
        "held": held,
    }

    def step(pull: Pull | None) -> None:
        model(input_ids=inputs, labels=labels).loss.backward()
        if pull is not None:
            apply_gradient_terms([pull], parameters)
        optimizer.step()
        if pull is not None:
            apply_weight_terms([pull], parameters, 2)
        optimizer.zero_grad()

    # The refreshes are timed above and shared out below, so that every timed step is alike.
    step(None)
    steps: dict[str, list[float]] = {name: [] for name in terms}
    for _ in range(options.steps):
        for name, pull in terms.items():
            steps[name].append(clock.time(lambda pull=pull: step(pull)))
    plain = statistics.median(steps["plain"])
    seconds["fisher"] = [
        clock.time(lambda: unstructured.code(weights, options.sparsity, fisher.values(weights)))
        for _ in range(options.rounds)
    ]
    refreshing = {
        name: statistics.median(seconds["fisher" if name == "fisher" else "projection"]) / options.refresh / plain
        for name in terms
    }
    refreshing["held"] = 0.0
    alone = {
        name: statistics.median(clock.time(lambda pull=pull: _hooks(pull, parameters)) for _ in range(options.rounds))
        for name, pull in terms.items()
        if pull is not None
    }
    return {
        "benchmark": "projection",
        "protocol": {
            "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(),
            "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in parameters),
            "weights": number,
            "batch": options.batch,
            "length": options.length,
            "refresh": options.refresh,
        },
        "projection": {**projections, "pass_seconds": one_pass},
        "step": {
            "plain_seconds": plain,
            "refresh_share": refreshing["decoupled"],
            "fisher_refresh_share": refreshing["fisher"],
            **{
                f"{name}_over_plain": statistics.median(times) / plain + refreshing[name]
                for name, times in steps.items()
                if name != "plain"
            },
            # The hooks alone: less noisy than the difference of two long steps.
            **{f"{name}_hooks_share": time / plain + refreshing[name] for name, time in alone.items()},
        },
    }


def _hooks(pull, parameters) -> None:
    from hf_fip.terms import apply_gradient_terms, apply_weight_terms

    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = parameter.detach().clone()
    apply_gradient_terms([pull], parameters)
    apply_weight_terms([pull], parameters, 2)


class _Clock:
    def __init__(self, device):
        self.device = device

    def time(self, run: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize()


def _table(result: dict) -> str:
    lines = [", ".join(f"{key} {value}" for key, value in result["protocol"].items()), ""]
    for part in ("projection", "step"):
        lines += [f"{key:32} {value:10.4g}" for key, value in result[part].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
