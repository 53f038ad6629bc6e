"""Graphs of compressed nodes, made once by the operators; tests read them and store nothing in them."""

import pytest
import torch

from hf_fip import Compression, ContinualLearning, ModelGraph, Task, begin_graph
from hf_fip.models import LeNet300100Config, LeNet300100ForImageClassification
from hf_fip.models.embedded import grey_image_processor


LOW = Task(name="low", dataset="embedded:digits", classes=[0, 1, 2, 3, 4], max_train=100, max_test=50)
HIGH = Task(name="high", dataset="embedded:digits", classes=[5, 6, 7, 8, 9], max_train=100, max_test=50)
QUICK = {"learning_rate": 5e-3, "batch_size": 32, "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no"}


def compress(node, target=None, **options):
    return Compression(target, **{"steps": 4, "anchors": 50, "training": QUICK, **options})(node)


@pytest.fixture(scope="session")
def lenet(tmp_path_factory):
    """A fully connected network, compressed in every way that is stored differently, then taught another task."""
    folder = tmp_path_factory.mktemp("lenet")
    torch.manual_seed(0)
    config = LeNet300100Config(image_size=8, hidden_sizes=(48, 32), num_labels=5)
    LeNet300100ForImageClassification(config).save_pretrained(folder / "model")
    grey_image_processor(8, 0.305, 0.376).save_pretrained(folder / "model")
    graph = ModelGraph(folder / "graph")
    base = begin_graph(graph, model=str(folder / "model"), task=LOW, training={**QUICK, "epochs": 1})
    end = compress(base, [0.5, 0.95]).end
    compress(base, [0.5, 0.95], branch="again", seed=1)
    compress(base, 0.5, projection={"name": "structured", "kinds": ["neurons"]}, branch="structured")
    compress(base, projection="int8", branch="int8")
    compress(base, [0.25, 0.75], projection="low_rank", branch="low_rank")
    compress(base, 0.5, exclude=["hidden.0"], branch="part")
    ContinualLearning(HIGH, path_points=2, anchors=50, branch="then", training={**QUICK, "max_steps": 2})(end)
    return ModelGraph.load(graph.folder)


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    graph = ModelGraph(tmp_path_factory.mktemp("vit") / "graph")
    base = begin_graph(graph, model="embedded:vit-tiny", task=LOW, training={**QUICK, "max_steps": 1})
    compress(base, 0.9, steps=2)
    compress(base, 0.6, steps=2, projection="structured", branch="structured")
    return ModelGraph.load(graph.folder)
