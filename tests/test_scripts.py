"""The scripts that make the tables of the documentation: every one loads and says its protocol; what they share counts
right; a stream and a forgetting budget are measured on a few images."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image

from .testing_utils import ROOT


SCRIPTS = ROOT / "scripts" / "reproduce"
EXPERIMENTS = sorted(file.stem for file in SCRIPTS.glob("*.py") if "reproduce(" in file.read_text("utf-8"))
EXPERIMENTS.remove("experiment")


@pytest.fixture
def script(monkeypatch):
    """A script's module by its name."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def options(script, folder: Path, **given):
    return script("experiment").Options(**{"scale": "small", "data_root": None, "output_dir": folder, **given})


@pytest.fixture(scope="module")
def cifar_like(tmp_path_factory) -> Path:
    """A local folder whose `cifar100` has eight classes that differ in their mean colour."""
    folder = tmp_path_factory.mktemp("data")
    names = [f"colour {number}" for number in range(8)]
    features = Features(img=Image(), fine_label=ClassLabel(names=names))
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, (8, 3))
    for split, number in (("train", 24), ("test", 16)):
        labels = [label for label in range(8) for _ in range(number)]
        noise = rng.integers(-40, 40, (len(labels), 16, 16, 3))
        pictures = (colours[labels][:, None, None] + noise).astype(np.uint8)
        rows = Dataset.from_dict({"img": list(pictures), "fine_label": labels}, features=features)
        (folder / "cifar100").mkdir(exist_ok=True)
        rows.to_parquet(folder / "cifar100" / f"{split}.parquet")
    return folder


class TestShared:
    def measurement(self, script, value, method="fip", **setting):
        return script("experiment").Measurement(method, "accuracy", value, setting)

    def run(self, script, folder, seeds, measure):
        argv = ["--seeds", *map(str, seeds), "--output_dir", str(folder), "--json"]
        return script("experiment").reproduce(
            "toy",
            measure=measure,
            protocol=lambda asked: {"model": f"a toy at {asked.scale}"},
            paper=[],
            description="",
            argv=argv,
        )

    def test_mean_and_deviation_over_seeds_of_each_method_and_setting(self, script, tmp_path):
        def measure(seed, options):
            return [self.measurement(script, 10 * seed), self.measurement(script, seed, "er", anchors=50)]

        results = self.run(script, tmp_path, [1, 2, 3], measure)

        fip, er = results["rows"]
        assert (fip["method"], fip["mean"], fip["std"], fip["n"]) == ("fip", 20, 10, 3)
        assert (er["method"], er["setting"], er["mean"], er["std"]) == ("er", {"anchors": 50}, 2, 1)
        assert json.loads((tmp_path / "results.json").read_text("utf-8")) == results
        table = (tmp_path / "results.md").read_text("utf-8")
        assert "| fip |  | 20 ± 10 |" in table
        assert "| er | anchors 50 | 2 ± 1 |" in table
        assert "a toy at small" in table

    def test_a_seed_that_is_done_is_not_measured_again(self, script, tmp_path):
        asked = []

        def measure(seed, options):
            asked.append(seed)
            if seed == 2 and len(asked) == 2:
                raise KeyboardInterrupt
            return [self.measurement(script, seed)]

        with pytest.raises(KeyboardInterrupt):
            self.run(script, tmp_path, [1, 2], measure)
        results = self.run(script, tmp_path, [1, 2], measure)

        assert asked == [1, 2, 2]
        assert results["rows"][0]["mean"] == 1.5

    @pytest.mark.parametrize("given, scale", [([], "small"), (["--full"], "full"), (["--scale", "full"], "full")])
    def test_the_scale_that_is_asked_for(self, script, tmp_path, given, scale):
        script("experiment").reproduce(
            "toy",
            measure=lambda seed, asked: [self.measurement(script, float(asked.is_full))],
            protocol=lambda asked: {},
            paper=[],
            description="",
            argv=[*given, "--seeds", "0", "--output_dir", str(tmp_path)],
        )
        assert (tmp_path / f"{scale}-seed-0.json").is_file()


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["small", "full"])
def test_every_script_says_what_its_numbers_rest_on(script, tmp_path, name, scale):
    protocol = script(name).protocol(options(script, tmp_path, scale=scale))
    assert protocol
    assert all(str(value) for value in protocol.values())
    assert f"{name}.py" in script(name).__doc__


def test_share_of_the_gap_between_fine_tuning_and_joint_training(script):
    measured = script("split_cifar100")
    scenario = {"scenario": "task-incremental"}
    values = {"naive": 20.0, "fip": 50.0, "joint": 60.0}
    found = [script("experiment").Measurement(name, "average accuracy", v, scenario) for name, v in values.items()]
    (closed,) = measured.gaps_closed(found)
    assert (closed.method, closed.value) == ("fip", 75.0)


def test_fresh_inputs_are_those_that_no_certificate_has_seen(script, cifar_like):
    from hf_fip import Task
    from hf_fip.models.embedded import image_processor
    from hf_fip.task_data import TaskData

    processor = image_processor(16, [0.5] * 3, [0.25] * 3)
    task = Task("cifar100", "uoft-cs/cifar100", label_column="fine_label")
    data = TaskData(processor, str(cifar_like), 3, None)
    _, held_out = data.anchors([task], {"cifar100": list(range(8))}, 8, False, held_out=50)
    every = data.features(task, list(range(8)), "test")["pixel_values"]
    fresh = script("forgetting_control").unseen(len(every), 50, 3)

    seen = {np.asarray(pixels).tobytes() for pixels in held_out["pixel_values"]}
    assert len(seen) == 50
    assert len(fresh) == len(every) - 50
    assert not seen & {np.asarray(every[row]).tobytes() for row in fresh}


@pytest.fixture
def small_stream(script, monkeypatch):
    """Streams of two tasks more, of two classes and a few steps."""
    for name in ("split_cifar100", "forgetting_control"):
        monkeypatch.setattr(script(name), "CLASSES_PER_TASK", 2)
    size = script("split_cifar100").Size(192, 128, 16, "ResNet-8", base_steps=20, steps=10, batch=8)
    monkeypatch.setitem(script("split_cifar100").SIZES, "small", size)
    return size


def test_a_stream_is_measured_beside_its_bounds(script, small_stream, cifar_like, monkeypatch, tmp_path):
    measured = script("split_cifar100")
    chosen = {"naive": {}, "fip": {"beta": 0.1}}
    monkeypatch.setattr(measured, "SCENARIOS", {"task-incremental": ("per_task", chosen)})

    found = measured.measure(0, options(script, tmp_path, data_root=str(cifar_like)))

    values = {(m.method, m.metric): m.value for m in found}
    assert values["fip", "functional distance"] < values["naive", "functional distance"] / 10
    # Colours are told apart by anything that has seen them all.
    assert values["joint", "average accuracy"] > max(60, values["naive", "average accuracy"])


def test_what_nodes_of_a_stream_claim_is_set_against_fresh_inputs(
    script, small_stream, cifar_like, monkeypatch, tmp_path
):
    measured = script("forgetting_control")
    monkeypatch.setattr(measured, "STREAM_TASKS", 3)
    monkeypatch.setattr(measured, "STREAM_HELD_OUT", 20)
    monkeypatch.setattr(measured, "BUDGETS", (0.05,))

    found = measured.control_stream(0, options(script, tmp_path, data_root=str(cifar_like)))

    values = {(m.metric, m.setting["budget"]): m.value for m in found}
    assert values["nodes", "5%"] == 2
    # 20 inputs of a task cannot certify 5 %, whatever is seen on them: it takes 72.
    assert values["certified", "5%"] == values["certified, yet above", "5%"] == 0
    assert values["inputs needed", "5%"] >= 72
    assert values["fresh: changed, %", "5%"] <= values["fresh: changed, %", "none: naive"]
