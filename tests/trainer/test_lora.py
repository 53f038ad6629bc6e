"""One adapter per task: what was learned before is never touched, and the nodes say how they were measured."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import ViTConfig, ViTForImageClassification

from hf_fip import ContinualLearning, FIPTrainer, InputError, begin_graph
from hf_fip.baselines.lora import fresh_adapter
from hf_fip.models.embedded import VIT_TINY, grey_image_processor
from hf_fip.tasks import Task
from tests.testing_utils import arguments, assert_same_weights, case, weights


TRAINING = {"max_steps": 40, "batch_size": 16, "learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True}
NAMES = ("low", "middle", "high")


def task(name, **options):
    first = 3 * NAMES.index(name)
    options |= {"classes": [first, first + 1, first + 2], "max_train": 200, "max_test": 90}
    return Task(name=name, dataset="embedded:digits", **options)


def learn(base, *names, method="lora", **options):
    stream = [task(name) for name in names]
    settings = {"anchors": 24, "path_points": 1, "training": TRAINING, **options}
    return ContinualLearning(stream=stream, method=method, **settings)(base)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**{**VIT_TINY, "num_hidden_layers": 2})).save_pretrained(folder / "vit")
    grey_image_processor(8, 0.305, 0.376).save_pretrained(folder / "vit")
    return begin_graph(str(folder / "graph"), model=str(folder / "vit"), task=task("low"), training=TRAINING)


@pytest.fixture(scope="module")
def path(base):
    return learn(base, "middle", "high")


@pytest.fixture(scope="module")
def images(base):
    rows = task("low").load("test")["image"]
    return {"pixel_values": torch.tensor(np.asarray(base.load_processor()(list(rows))["pixel_values"]))}


def scores(model, images):
    with torch.no_grad():
        return model.eval()(**images).logits


def test_every_tasks_network_is_the_base_with_its_adapter(base, path, images):
    before = scores(base.load_model(), images)
    for node in path:
        model = node.load_model()
        assert isinstance(model, PeftModel)
        assert not torch.allclose(scores(model, images)[:, :3], before)
        with model.disable_adapter():
            torch.testing.assert_close(scores(model, images)[:, :3], before)
        kept = {
            name.replace(".base_layer", "").replace(".original_module", ""): value
            for name, value in weights(model.get_base_model()).items()
            if "lora" not in name and "modules_to_save" not in name
        }
        old = weights(base.load_model())
        assert_same_weights({name: value[: len(old[name])] for name, value in kept.items()}, old)
    assert [node.load_model().config.num_labels for node in path] == [6, 9]


def test_adapters_lie_on_the_base_and_not_on_each_other(base, path):
    for node in path:
        assert node.load_model().peft_config["default"].base_model_name_or_path == str(base.folder)


def test_earlier_tasks_keep_their_metrics_and_the_node_says_so(base, path):
    middle, high = path
    assert middle.metrics["low/accuracy"] == high.metrics["low/accuracy"] == base.metrics["low/accuracy"]
    assert high.metrics["middle/accuracy"] == middle.metrics["middle/accuracy"]
    assert min(middle.metrics["middle/accuracy"], high.metrics["high/accuracy"]) > 0.5, "learned: a third is guessing"
    assert high.protocol["measured_before"] == ["low", "middle"]
    assert "Metrics of low, middle are those of the nodes before it" in (high.folder / "README.md").read_text()
    assert high.protocol["task_id_at_test"] is True and high.protocol["scenario"] == "task-incremental"
    assert [one.name for one in high.tasks] == list(NAMES)


def test_a_finished_stream_is_found_again(base, path):
    assert [node.id for node in learn(base, "middle", "high")] == [node.id for node in path]


def test_tasks_may_share_their_labels(base):
    """An adapter of its own tells the tasks apart, whose labels bear the same names."""
    shared = task("middle", class_names=["0", "1", "2"])
    operator = ContinualLearning(
        shared, method="lora", label_space="shared", anchors=24, path_points=1, branch="shared", training=TRAINING
    )
    end = operator(base).end
    assert end.protocol["label_space"]["middle"] == [0, 1, 2] and end.load_model().config.num_labels == 3
    assert end.metrics["low/accuracy"] == base.metrics["low/accuracy"]
    assert end.metrics["middle/accuracy"] > 0.5, "learned: a third is guessing"


def test_rank_and_scale_can_be_tuned_and_nothing_else(base):
    end = learn(base, "middle", method_options={"rank": 2, "alpha": 4}, branch="narrow").end
    config = end.load_model().peft_config["default"]
    assert (config.r, config.lora_alpha) == (2, 4)
    with pytest.raises(InputError, match="method='lora' has no option model; it has rank, alpha"):
        learn(base, "middle", method_options={"model": None})


def test_a_path_of_an_adapter_keeps_the_function_and_the_weights_below_it(base):
    """Unlike one adapter per task it is one network: both tasks are learned by the same adapter, one after another."""
    # Steps enough that rounding, which differs between machines, does not decide what is learned.
    training = {**TRAINING, "max_steps": 60}
    given = {"adapter": {"rank": 4, "alpha": 8}, "anchors": 60, "training": training}
    middle, high = learn(base, "middle", "high", method="fip", branch="adapted", beta=1.0, **given)
    naive = learn(base, "middle", method="naive", branch="naive", **given).end
    assert middle.metrics["low/loss"] < naive.metrics["low/loss"] / 2
    assert high.metrics["high/accuracy"] > 0.5, "learned: a third is guessing"
    for node in (middle, high):
        config = node.load_model().peft_config["default"]
        assert config.r == 4 and config.base_model_name_or_path == str(base.folder)
    assert high.protocol["scenario"] == "class-incremental"


@pytest.mark.parametrize(
    ("adapter", "method", "message"),
    [
        ({"r": 4}, "fip", r"adapter=\{'r': 4\}: give a dict of rank and alpha"),
        ({"rank": -1}, "lora", "rank=-1 has to be at least 1"),
        ({"rank": 0}, "fip", "rank=0 has to be at least 1"),
    ],
    ids=["unknown key", "lora", "no rank"],
)
def test_adapters_that_cannot_be_are_refused(adapter, method, message, base):
    with pytest.raises(InputError, match=message):
        learn(base, "middle", method=method, adapter=adapter, branch="refused")


@pytest.mark.parametrize("kind", ["fill-mask", "text-generation"])
def test_an_adapter_of_a_language_model_leaves_its_words_alone(kind, tmp_path):
    given = case(kind)
    given["model"].save_pretrained(tmp_path / "base")
    before = weights(given["model"])
    model = fresh_adapter(given["model"].from_pretrained(tmp_path / "base"), rank=2)
    trainer = FIPTrainer(args=arguments(tmp_path / "run"), **{**given, "model": model})
    trainer.train()
    end = trainer.graph["fip"].load_model()
    trained = {name for name, p in end.named_parameters() if "lora" in name}
    assert trained and not any("lm_head" in name or "decoder" in name for name in trained)
    changed = {name: value for name, value in weights(end).items() if "lora_B" in name and value.any()}
    assert changed, "it has learned"
    assert_same_weights(weights(end.unload()), before)
