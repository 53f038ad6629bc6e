"""A recipe says what it means, or is refused with the file, the line and the key."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fip import ModelGraph
from hf_fip.errors import InputError
from hf_fip.recipes import Step, builtin_recipes, load_recipe, run
from hf_fip.recipes.document import dump, parse
from hf_fip.recipes.splits import expand
from hf_fip.recipes.summary import summary
from hf_fip.recipes.validation import OPERATORS


RECIPE = """\
description: two halves of the digits
model: embedded:vit-tiny
tasks:
  low: {dataset: embedded:digits, classes: [0, 1, 2]}
  high:
    dataset: embedded:digits
    classes: [3, 4]
base:
  task: low
  epochs: 2
  learning_rate: 1e-3
training: {epochs: 3, learning_rate: 5e-4, batch_size: 16}
anchors: 40
path:
  - operator: ContinualLearning
    task: high
    training: {epochs: 1}
baselines: [naive]
"""


@pytest.fixture
def recipe_file(tmp_path: Path):
    def write(text: str = RECIPE) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def edited(old: str, new: str) -> str:
    assert old in RECIPE
    return RECIPE.replace(old, new)


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), start=1) if part in line)


@pytest.mark.parametrize(
    ("old", "new", "key", "known"),
    [
        ("anchors: 40", "anchor: 40", "anchor", "did you mean 'anchors'"),
        ("  epochs: 2", "  epoch: 2", "epoch", "did you mean 'epochs'"),
        ("training: {epochs: 3", "training: {epocs: 3", "epocs", "learning_rate"),
        ("    classes: [3, 4]", "    clases: [3, 4]", "clases", "did you mean 'classes'"),
        ("    task: high", "    task: high\n    budget: 0.02", "budget", "distance_budget"),
        ("    training: {epochs: 1}", "    training: {path_points: 1}", "path_points", "epochs"),
        ("anchors: 40", "variants: {a: {anchor: 4}}", "anchor", "did you mean 'anchors'"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_known_ones(recipe_file, old, new, key, known):
    text = edited(old, new)
    with pytest.raises(InputError) as error:
        load_recipe(recipe_file(text))
    message = str(error.value)
    assert f"mine.yaml, line {line_of(text, f'{key}:')}: unknown key '{key}'" in message
    assert known in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("anchors: 40", "anchors: many", "'anchors' must be a whole number, not 'many'"),
        ("anchors: 40", "anchors: 0", "'anchors' must be at least 2, not 0"),
        ("anchors: 40", "anchors: true", "'anchors' must be a whole number, not true"),
        ("anchors: 40", "distance_budget: 0", "'distance_budget' must be more than 0, not 0.0"),
        ("anchors: 40", "distance_budget: .nan", "'distance_budget' must be a number or a list or null, not nan"),
        ("anchors: 40", "disagreement_budget: 2", "'disagreement_budget' must be less than 1, not 2.0"),
        ("anchors: 40", "label_space: apend", "'label_space' must be 'append' or 'shared' or 'per_task', not"),
        ("anchors: 40", "functional_distance: hellingr", "unknown functional distance 'hellingr' (did you mean"),
        ("  epochs: 2", "  epochs: 0", "'base.epochs' must be more than 0"),
        ("  learning_rate: 1e-3", "  learning_rate: '1e-3'", "'base.learning_rate' must be a number, not '1e-3'"),
        ("  learning_rate: 1e-3", "  fp16: 1", "'base.fp16' must be true or false, not 1"),
        ("  task: low", "  task: lo", "unknown task 'lo' (did you mean 'low'?); known: low, high"),
        ("    task: high", "    task: hi", "unknown task 'hi'"),
        ("    task: high", "    task: high\n    method: fipp", "unknown method 'fipp' (did you mean 'fip'?)"),
        ("operator: ContinualLearning", "operator: Learning", "unknown operator 'Learning'"),
        ("baselines: [naive]", "baselines: [naiv]", "unknown method 'naiv' (did you mean 'naive'?)"),
        ("baselines: [naive]", "baselines: naive", "'baselines' must be a list of methods, not 'naive'"),
        ("baselines: [naive]", "baselines: [naive, naive]", "there is a branch of this name already"),
        ("baselines: [naive]", "branches: {base: []}", "branch 'base': this name is taken"),
        ("baselines: [naive]", "branches: {a/b: []}", "branch 'a/b': a name has letters"),
        ("baselines: [naive]", "branches: {other: []}", "'branches.other' must be a list of operators"),
        ("    dataset: embedded:digits", "    max_test: 5", "key 'dataset' is missing in 'tasks.high'"),
        ("    classes: [3, 4]", "    max_train: 0", "'tasks.high.max_train' must be at least 1, not 0"),
        ("    classes: [3, 4]", "    classes: [3.5]", "classes=[3.5]"),
        ("model: embedded:vit-tiny", "model: [a]", "'model' must be text, not ['a']"),
        ("anchors: 40", "anchors: [4", "not valid YAML"),
        ("anchors: 40", "anchors: 40\nanchors: 50", "key 'anchors' is given twice"),
        ("anchors: 40", "1: 2", "a key must be text, not '1'"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(recipe_file, old, new, message):
    with pytest.raises(InputError) as error:
        load_recipe(recipe_file(edited(old, new)))
    assert message in str(error.value)
    assert re.search(r"mine\.yaml, line \d+: ", str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping|is a mapping"),
        ("- a\n- b\n", "is a mapping of keys to values"),
        ("model: embedded:cnn\n", "key 'tasks' is missing"),
        ("model: embedded:cnn\ntasks: {}\n", "'tasks' is empty"),
        ("tasks: {a: {dataset: b}}\n", "key 'model' is missing"),
        ("a: &a [*a]\n", "alias"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(recipe_file, text, message):
    with pytest.raises(InputError, match=message):
        load_recipe(recipe_file(text))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"model: \xff\xfe")
    with pytest.raises(InputError, match="mine.yaml: not a text file in UTF-8"):
        load_recipe(path)


def test_an_unknown_recipe_lists_the_built_in_ones():
    with pytest.raises(InputError) as error:
        load_recipe("dmo")
    assert "unknown recipe 'dmo' (did you mean 'demo'?)" in str(error.value)
    assert all(name in str(error.value) for name in builtin_recipes())
    with pytest.raises(InputError, match="no such file"):
        load_recipe("nowhere/mine.yaml")


def test_overrides_reach_every_place_and_are_typed(recipe_file):
    recipe = load_recipe(
        recipe_file(),
        [
            "training.learning_rate=3e-5",
            "tasks.high.classes=[5, 6]",
            "path.0.anchors=7",
            "baselines=[naive, joint]",
            "distance_budget=0.02",
            "base.max_steps=9",
            "seed=3",
        ],
    )
    assert recipe.training == {"epochs": 3.0, "learning_rate": 3e-5, "batch_size": 16}
    assert recipe.tasks["high"].classes == [5, 6]
    assert recipe.plan()["fip"][0].settings["anchors"] == 7
    assert recipe.baselines == ("naive", "joint")
    assert (recipe.distance_budget, recipe.seed, recipe.base["max_steps"]) == (0.02, 3, 9)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("anchor=3", "--set anchor=3: unknown key 'anchor' (did you mean 'anchors'?)"),
        ("base.epoch=3", "--set base.epoch=3: unknown key 'epoch' in 'base'"),
        ("anchors=few", "--set anchors=few: 'anchors' must be a whole number, not 'few'"),
        ("path.3.task=low", "--set path.3.task=low: 'path' is a list of 1"),
        ("model.name=a", "--set model.name=a: 'model' has no keys"),
        ("anchors", "--set anchors: expected key=value"),
        ("anchors=[1", "--set anchors=[1: not valid YAML"),
        ("variants.a=1", "variants"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_given(recipe_file, override, message):
    with pytest.raises(InputError) as error:
        load_recipe(recipe_file(), [override])
    assert message in str(error.value)


def test_a_variant_fits_the_recipe_to_its_model_and_overrides_win(recipe_file):
    text = RECIPE + "variants:\n  embedded:cnn: {anchors: 9, base: {learning_rate: 0.5}, training: {epochs: 7}}\n"
    path = recipe_file(text)
    assert load_recipe(path).anchors == 40
    varied = load_recipe(path, ["model=embedded:cnn", "training.epochs=8"])
    assert (varied.model, varied.anchors) == ("embedded:cnn", 9)
    assert varied.base == {"task": "low", "epochs": 2.0, "learning_rate": 0.5}
    assert varied.training == {"epochs": 8.0, "learning_rate": 5e-4, "batch_size": 16}
    with pytest.raises(InputError, match=rf"mine.yaml, line {line_of(text, 'embedded:cnn:')}: 'anchors' must be"):
        load_recipe(recipe_file(text.replace("anchors: 9", "anchors: x")), ["model=embedded:cnn"])


def test_branches_take_the_recipe_s_settings_and_their_own(recipe_file):
    text = RECIPE + (
        "disagreement_budget: 0.02\n"
        "branches:\n"
        "  free: [{operator: ContinualLearning, task: high, disagreement_budget: null, anchors: 5}]\n"
    )
    plan = load_recipe(recipe_file(text)).plan()
    assert list(plan) == ["fip", "naive", "free"]
    (fip,), (naive,), (free,) = plan.values()
    assert fip.training == {"epochs": 1.0, "learning_rate": 5e-4, "batch_size": 16}
    assert (fip.settings["anchors"], fip.settings["disagreement_budget"]) == (40, 0.02)
    assert (naive.method, naive.task, naive.training) == ("naive", "high", fip.training)
    budgets = {"functional_distance", "beta", "distance_budget", "disagreement_budget", "calibration_share"}
    budgets |= {"anchor_label_weight", "anchor_prediction_weight"}
    assert naive.settings == {name: value for name, value in fip.settings.items() if name not in budgets}
    assert (free.settings["anchors"], free.settings["disagreement_budget"]) == (5, None)
    assert free.training["epochs"] == 3.0


def test_without_a_path_the_later_tasks_are_learned_in_turn(recipe_file):
    text = "model: embedded:cnn\ntasks: {a: {dataset: x}, b: {dataset: x}, c: {dataset: x}}\nbase: {task: b}\n"
    recipe = load_recipe(recipe_file(text))
    assert recipe.base_task.name == "b"
    assert recipe.path == (Step("ContinualLearning", "a"), Step("ContinualLearning", "c"))


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_built_in_recipe_loads_and_survives_its_own_yaml(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description and recipe.plan()
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(path) == recipe


@pytest.mark.parametrize("name", ["demo", "digits", "split_digits"])
def test_recipes_for_machines_without_a_network_name_nothing_on_the_hub(name):
    recipe = load_recipe(name)
    tasks = expand(recipe).tasks.values()
    assert all(spec.startswith("embedded:") for spec in [recipe.model, *(task.dataset for task in tasks)])


def test_the_small_bert_of_yelp_imdb_learns_faster():
    large, small = load_recipe("yelp_imdb"), load_recipe("yelp_imdb", ["model=embedded:bert-mini"])
    assert large.tasks == small.tasks
    assert small.training["learning_rate"] >= 5 * large.training["learning_rate"]


def test_a_step_takes_what_its_operator_takes():
    operators = pytest.importorskip("hf_fip.operators")
    # The runner gives these: the task by its name, the branch's name, the recipe's folder of data.
    given = {"dataset", "stream", "branch", "data_root"}
    learning = set(inspect.signature(operators.ContinualLearning).parameters)
    assert set(OPERATORS["ContinualLearning"]) - {"operator", "task", "stream"} == learning - given
    compression = set(inspect.signature(operators.Compression).parameters)
    assert set(OPERATORS["Compression"]) - {"operator"} <= compression - given
    diversification = set(inspect.signature(operators.Diversification).parameters)
    assert set(OPERATORS["Diversification"]) - {"operator"} <= diversification - given


def test_a_recipe_s_keys_cannot_be_changed(recipe_file):
    with pytest.raises(AttributeError):
        load_recipe(recipe_file()).anchors = 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-5", 3e-5),
        ("1E3", 1e3),
        (".5", 0.5),
        ("-2", -2),
        ("010", 10),
        ("0x1F", 31),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("null", None),
        ("", None),
        ("'3e-5'", "3e-5"),
        ("embedded:bert-mini", "embedded:bert-mini"),
        ("../data", "../data"),
    ],
)
def test_scalars_mean_what_they_look_like(text, value):
    parsed = parse(f"key: {text}", "test").data["key"]
    assert parsed == value and type(parsed) is type(value)


_TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=12)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT
_TREES = st.recursive(
    _SCALARS | st.sampled_from(["3e-5", "yes", "1:30", "010", "2020-01-01", "~", "=", "<<", "1_000"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(_TEXT, _TREES, max_size=4))
def test_what_is_written_is_read_back_by_us_and_by_any_yaml_reader(data):
    text = dump(data)
    assert parse(text, "test").data == data
    assert yaml.safe_load(text) == data


def test_the_summary_compares_the_branches_and_ends_with_the_path():
    l2 = {"name": "l2", "unit": "share of output variance"}
    result = {
        "graph": "out/graph",
        "endpoints": {"base": "b", "fip": "f", "naive": "n", "bhattacharyya": "y"},
        "metrics": {
            "b": {"low/accuracy": 0.95, "low/loss": 0.1},
            "f": {"low/accuracy": 0.94, "high/accuracy": 0.9},
            "n": {"low/accuracy": 0.0, "high/accuracy": None},
            "y": {"low/accuracy": 0.8, "high/accuracy": 0.9},
        },
        "functional_distance": {
            "b": {"parent": None, "root": None},
            "f": {"parent": 0.01, "root": 0.02, **l2},
            "n": {"parent": 1.0, "root": 1.5, **l2},
            "y": {"parent": 1.0, "root": 0.1, "name": "bhattacharyya", "unit": "nats"},
        },
        "scenario": {"fip": "class-incremental", "naive": "class-incremental", "bhattacharyya": "task-incremental"},
        "report": None,
        "recipe": {"tasks": {"low": {}, "high": {}, "never learned": {}}},
    }
    lines = summary(result).splitlines()
    rows = [line.split() for line in lines[1:6]]
    assert rows == [
        ["branch", "low", "high", "mean", "distance"],
        ["base", "95.0", "-", "-", "-"],
        ["naive", "0.0", "-", "-", "1.5000"],
        # Another distance, in another unit, is not to be compared.
        ["bhattacharyya", "80.0", "90.0", "85.0", "-"],
        ["fip", "94.0", "90.0", "92.0", "0.0200"],
    ]
    assert len({len(line) for line in lines[1:6]}) == 1
    assert "(l2, share of output variance)" in summary(result)
    assert {"class-incremental: naive, fip", "task-incremental: bhattacharyya"} < set(lines)
    assert "hf-fip show out/graph" in lines[-1]


def test_recipes_are_listed_without_importing_torch():
    code = "import sys; import hf_fip.recipes as r; assert r.builtin_recipes()['demo']; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


COMPRESSING = """
model: embedded:cnn
tasks: {digits: {dataset: 'embedded:digits'}, letters: {dataset: 'embedded:letters'}}
anchors: 100
distance_budget: 0.1
path:
  - {operator: ContinualLearning, task: letters}
  - {operator: Compression, sparsity: [0.5, 0.9], steps: 20, training: {learning_rate: 1e-3}}
baselines: [naive, gmp]
"""


def test_steps_of_compression(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(COMPRESSING)
    recipe = load_recipe(str(file))
    learning, compressing = recipe.plan()["fip"]
    assert compressing.settings == {
        "anchors": 100, "distance_budget": 0.1, "seed": 0, "sparsity": [0.5, 0.9], "steps": 20
    }  # fmt: skip
    assert learning.settings["path_points"] == 5, "what only another operator takes is not handed on"
    assert [step.method for step in recipe.plan()["naive"]] == ["naive", "fip"]
    assert [step.method for step in recipe.plan()["gmp"]] == ["fip", "gmp"]
    file.write_text(recipe.to_yaml())
    assert load_recipe(str(file)) == recipe


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("sparsity: [0.5, 0.9]", "sparsity: yes", "sparsity' must be a number or a list"),
        ("steps: 20", "path_points: 20", "unknown key 'path_points'"),
        ("operator: Compression,", "operator: Compression, task: digits,", "unknown key 'task'"),
        ("operator: ContinualLearning, task: letters", "operator: ContinualLearning", "key 'task' is missing"),
        ("baselines: [naive, gmp]", "baselines: [gmpp]", "did you mean 'gmp'"),
        ("operator: Compression,", "operator: Compression, method: naive,", "unknown method 'naive'"),
    ],
)
def test_slips_in_steps_of_compression(tmp_path, old, new, complaint):
    file = tmp_path / "recipe.yaml"
    assert old in COMPRESSING
    file.write_text(COMPRESSING.replace(old, new))
    with pytest.raises(InputError, match=re.escape(complaint)):
        load_recipe(str(file))


DIVERSIFYING = """
model: embedded:cnn
tasks: {digits: {dataset: 'embedded:digits'}}
path_points: 3
disagreement_budget: 0.01
path:
  - {operator: Diversification, steps: 30, angle: 60, away_from: points}
  - {operator: Compression, sparsity: 0.5, steps: [20]}
branches:
  still: [{operator: Diversification, repulsion: null}]
baselines: [gmp]
"""


def test_steps_of_diversification(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(DIVERSIFYING)
    recipe = load_recipe(str(file))
    turning, compressing = recipe.plan()["fip"]
    assert turning.settings == {
        "path_points": 3, "disagreement_budget": 0.01, "seed": 0, "steps": 30, "angle": 60.0, "away_from": "points"
    }  # fmt: skip
    assert "path_points" not in compressing.settings and compressing.settings["steps"] == [20]
    assert recipe.plan()["still"][0].settings["repulsion"] is None, "null is asked for, not left out"
    assert [step.method for step in recipe.plan()["gmp"]] == [None, "gmp"]
    assert turning.purpose == "changes its weights but not its outputs"
    file.write_text(recipe.to_yaml())
    assert load_recipe(str(file)) == recipe


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("steps: 30", "steps: [30]", "'path.0.steps' must be a whole number or null"),
        ("steps: 30", "steps: 0", "'path.0.steps' must be at least 1"),
        ("angle: 60", "angle: 180", "'path.0.angle' must be less than 180"),
        ("angle: 60", "strength: 0", "'path.0.strength' must be more than 0"),
        ("angle: 60", "repulsion: magnetic", "'path.0.repulsion' must be 'cosine' or 'distance' or null"),
        ("away_from: points", "away_from: home", "'path.0.away_from' must be 'start' or 'points'"),
        ("angle: 60", "sparsity: 0.5", "unknown key 'sparsity'"),
        ("angle: 60", "method: fip", "unknown key 'method'"),
        ("angle: 60", "task: digits", "unknown key 'task'"),
        ("  - {operator: Compression, sparsity: 0.5, steps: [20]}\n", "", "'baselines' are other methods"),
    ],
)
def test_slips_in_steps_of_diversification(tmp_path, old, new, complaint):
    file = tmp_path / "recipe.yaml"
    assert old in DIVERSIFYING
    file.write_text(DIVERSIFYING.replace(old, new))
    with pytest.raises(InputError, match=re.escape(complaint)):
        load_recipe(str(file))


STREAM = """
model: embedded:vit-tiny
tasks:
  low: {dataset: embedded:digits, classes: [0, 1]}
  digits: {dataset: embedded:digits, classes: [2, 3, 4, 5], classes_per_task: 2}
  eight: {dataset: embedded:digits, classes: [8]}
label_space: per_task
reference: learned
anchor_memory: reservoir
path:
  - operator: ContinualLearning
    stream: [digits, eight]
branches:
  held: [{operator: ContinualLearning, stream: digits, method: ewc, method_options: {strength: 7}}]
baselines: [naive]
"""


def test_a_stream_learns_the_parts_of_a_split_in_turn(recipe_file):
    recipe = load_recipe(recipe_file(STREAM))
    assert load_recipe(recipe_file(recipe.to_yaml())) == recipe, "as the user wrote it, not expanded"
    expanded = expand(recipe)
    assert list(expanded.tasks) == ["low", "digits-01", "digits-02", "eight"]
    assert expanded.tasks["digits-02"].label_names() == ["4", "5"]
    plan = expanded.plan()
    assert plan["fip"][0].stream == plan["naive"][0].stream == ("digits-01", "digits-02", "eight")
    assert plan["fip"][0].settings["reference"] == "learned" and plan["fip"][0].task is None
    assert plan["held"][0].stream == ("digits-01", "digits-02")
    assert plan["held"][0].settings["method_options"] == {"strength": 7}


def test_a_split_base_is_its_first_part_and_the_path_the_others(recipe_file):
    text = "model: embedded:vit-tiny\ntasks: {d: {dataset: 'embedded:digits', classes_per_task: 5}}\n"
    recipe = expand(load_recipe(recipe_file(text)))
    assert recipe.base_task.name == "d-01" and recipe.base_task.label_names() == ["0", "1", "2", "3", "4"]
    assert recipe.path == (Step("ContinualLearning", stream=("d-02",)),)
    with pytest.raises(InputError, match="tasks.d.classes_per_task=10: the data set has no more classes"):
        expand(load_recipe(recipe_file(text), ["tasks.d.classes_per_task=10"]))


@pytest.mark.parametrize(
    ("old", "new", "at", "complaint"),
    [
        ("stream: [digits, eight]", "task: digits", "task: digits", "task 'digits' is split into several; use stream"),
        ("stream: [digits, eight]", "stream: [digit]", "stream: [digit]", "unknown task 'digit'"),
        ("stream: [digits, eight]", "stream: [eight, eight]", "stream: [ei", "names task 'eight' twice"),
        ("stream: [digits, eight]", "stream: [low]", "stream: [low]", "task 'low' is the base node's"),
        ("stream: [digits, eight]", "stream: []", "stream: []", "'path.0.stream' is empty"),
        ("stream: [digits, eight]", "stream: {a: b}", "stream: {a", "'path.0.stream' must be a list"),
        ("stream: [digits, eight]", "stream: [digits]\n    task: eight", "stream: [d", "has a task and a stream"),
        ("    stream: [digits, eight]\n", "", "- operator", "name a task, or several in 'stream'"),
        ("classes_per_task: 2", "classes_per_task: 0", "digits:", "classes_per_task' must be at least 1, not 0"),
        ("classes_per_task: 2", "classes_per_tasks: 2", "digits:", "did you mean 'classes_per_task'"),
        ("  eight:", "  digits-02:", "  digits-02:", "task 'digits-02' is named like a part of 'digits'"),
        ("{strength: 7}", "7", "held:", "'branches.held.0.method_options' must be a mapping"),
    ],
)
def test_slips_in_streams(recipe_file, old, new, at, complaint):
    assert old in STREAM
    text = STREAM.replace(old, new)
    with pytest.raises(InputError) as error:
        load_recipe(recipe_file(text))
    assert complaint in str(error.value) and f"mine.yaml, line {line_of(text, at)}: " in str(error.value)


def test_a_list_of_budgets_makes_a_branch_of_each_and_every_rival_once(recipe_file):
    text = RECIPE.replace("baselines: [naive]", "baselines: [naive, der]\ndisagreement_budget: [0.01, 0.02, 5e-2]\n")
    text += (
        "branches: {loose: [{operator: ContinualLearning, task: high, beta: [1, 10], disagreement_budget: null}]}\n"
    )
    recipe = load_recipe(recipe_file(text))
    plan = recipe.plan()
    assert list(plan) == ["fip-0.01", "fip-0.02", "fip-0.05", "naive", "der", "loose-1", "loose-10"]
    assert [plan[name][0].settings["disagreement_budget"] for name in list(plan)[:3]] == [0.01, 0.02, 0.05]
    assert [plan[name][0].settings["beta"] for name in ("loose-1", "loose-10")] == [1.0, 10.0]
    assert load_recipe(recipe_file(recipe.to_yaml())) == recipe
    alone = load_recipe(recipe_file(text), ["disagreement_budget=0.02"])
    assert plan["fip-0.02"] == alone.plan()["fip"], "a branch of a sweep is the run with that value"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("anchors: 40", "beta: []", "'beta' is an empty list"),
        ("anchors: 40", "beta: [1, 1.0]", "'beta' holds 1 twice"),
        ("anchors: 40", "beta: [1, 0]", "'beta.1' must be more than 0, not 0.0"),
        ("anchors: 40", "disagreement_budget: [0.1, x]", "'disagreement_budget.1' must be a number, not 'x'"),
        ("anchors: 40", "beta: [1, 2]\ndistance_budget: [0.1, 0.2]", "several lists: 'beta' [1.0, 2.0], 'distance_bu"),
        (
            "baselines: [naive]",
            "beta: [1, 2]\nbranches: {fip-1: [{operator: ContinualLearning, task: high, beta: 1}]}",
            "twice",
        ),
    ],
)
def test_slips_in_lists_of_budgets(recipe_file, old, new, complaint):
    with pytest.raises(InputError, match=re.escape(complaint)) as error:
        load_recipe(recipe_file(edited(old, new)))
    assert re.search(r"mine\.yaml, line \d+: ", str(error.value))


def test_a_setting_of_the_path_alone_never_reaches_a_rival(recipe_file):
    text = COMPRESSING.replace("letters}", "letters, beta: 3, method_options: {a: 1}, anchors: 7}")
    plan = load_recipe(recipe_file(text)).plan()
    learning, compressing = plan["naive"]
    assert learning.settings["anchors"] == 7
    assert not {"beta", "distance_budget", "method_options"} & learning.settings.keys()
    assert compressing.settings["distance_budget"] == 0.1
    assert "distance_budget" not in plan["gmp"][1].settings, "a method that keeps no function can hold no budget"


def test_the_summary_of_a_long_stream_shows_the_mean_of_its_tasks():
    tasks = [f"t{i:02d}" for i in range(20)]
    node = {f"{task}/accuracy": 0.5 + 0.01 * i for i, task in enumerate(tasks)}
    distance = {"parent": 0.1, "root": 0.2, "name": "l2", "unit": "share"}
    result = {
        "graph": "out",
        "endpoints": {"fip-0.01": "f", "naive": "n"},
        "metrics": {"f": node, "n": {"t00/accuracy": 1.0}},
        "functional_distance": {"f": distance, "n": distance},
        "scenario": {},
        "report": None,
        "recipe": {"tasks": dict.fromkeys(tasks, {})},
    }
    lines = summary(result).splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["branch", "mean", "distance"],
        ["naive", "-", "0.2000"],
        ["fip-0.01", "59.5", "0.2000"],
    ]
    assert "20 tasks" in lines[5]


def test_a_run_streams_its_splits_sweeps_its_budgets_and_goes_on(recipe_file, tmp_path):
    quick = ["tasks.digits.max_train=100", "tasks.digits.max_test=50", "anchors=20", "baselines=[naive]"]
    quick += ["tasks.digits.classes=[0,1,2,3,4,5]", "base.max_steps=2", "training.max_steps=2", "report=false"]
    recipe = load_recipe("split_digits", [*quick, "disagreement_budget=[0.1,0.5]", "training.restoration_steps=2"])
    result = run(recipe, tmp_path / "out")
    assert list(result["endpoints"]) == ["base", "fip-0.1", "fip-0.5", "naive"]
    assert result["scenario"] == dict.fromkeys(["fip-0.1", "fip-0.5", "naive"], "class-incremental")
    assert list(result["recipe"]["tasks"]) == ["digits-01", "digits-02", "digits-03"]
    graph = ModelGraph.load(result["graph"])
    assert [len(node.tasks) for node in graph] == [1, 2, 3, 2, 3, 2, 3]
    assert [graph[name].protocol["budget"]["asked"]["disagreement"] for name in ("fip-0.1", "fip-0.5")] == [0.1, 0.5]
    again = run(load_recipe(tmp_path / "out" / "recipe.yaml"), tmp_path / "out")
    assert again["endpoints"] == result["endpoints"]
    bad = load_recipe("split_digits", ["path=[{operator: ContinualLearning, stream: digits, method_options: {a: 1}}]"])
    with pytest.raises(InputError, match="method_options"):
        run(bad, tmp_path / "bad")
    assert not len(ModelGraph(tmp_path / "bad" / "graph")), "refused before the base was trained"
