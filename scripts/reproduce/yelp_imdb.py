"""
A BERT learns Yelp reviews, then IMDB reviews (paper: BERT on Yelp and IMDB), with appended labels and no task id at
test time, against naive fine-tuning and joint training; and with shared labels.

    python scripts/reproduce/yelp_imdb.py --scale full --seeds 0 1 2 [--data_root DIR]

`small` takes some hundred reviews; both scales use the embedded BERT-mini, `full` takes a quarter of an hour a seed.
"""

from __future__ import annotations

from experiment import Measurement, Options, endpoint_measurements, reproduce, run_recipe


MODEL = "model=embedded:bert-mini"
SMALL = ["tasks.yelp.max_train=400", "tasks.imdb.max_train=400", "tasks.yelp.max_test=200", "tasks.imdb.max_test=200"]
SMALL += ["anchors=100", "base.epochs=1", "training.epochs=1", "max_length=64"]


def measure(seed: int, options: Options) -> list[Measurement]:
    found = []
    for label_space, baselines in (("append", "[naive,joint]"), ("shared", "[naive]")):
        overrides = [MODEL, f"seed={seed}", f"label_space={label_space}", f"baselines={baselines}", "path_points=1"]
        folder = options.output_dir / f"{options.scale}-{label_space}-seed-{seed}"
        overrides += [] if options.is_full else SMALL
        result = run_recipe("yelp_imdb", overrides, folder, options.data_root)
        found += endpoint_measurements(result, {"labels": label_space})
    return found


def protocol(options: Options) -> dict:
    return {
        "model": "embedded:bert-mini, 1.35 M weights",
        "task id at test time": "no",
        "anchors": f"{2000 if options.is_full else 100} Yelp reviews without labels",
    }


if __name__ == "__main__":
    reproduce("yelp_imdb", measure=measure, protocol=protocol, paper=[], description=__doc__)
