"""Two gloo processes keep each task's own reference outputs, and judge within known tasks, as one process does."""

import pytest
from safetensors.torch import load_file

from hf_fip import ModelGraph
from tests.testing_utils import assert_same_weights, run_processes


SCRIPT = """
from hf_fip import FIPTrainer
from hf_fip.models.heads import grow_head
from hf_fip.path import Origin
from hf_fip.starting_network import TASK_COLUMN
from tests.testing_utils import arguments, classifier, texts, tokenizer

folder, per_device = sys.argv[1], int(sys.argv[2])
settings = {
    "max_steps": 4,
    "path_points": 1,
    "optim": "sgd",
    "learning_rate": 0.05,
    "per_device_train_batch_size": per_device,
    "ddp_backend": "gloo" if "WORLD_SIZE" in os.environ else None,
}
first = FIPTrainer(
    model=classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    args=arguments(folder, **settings),
    train_dataset=texts(32, seed=1),
    processing_class=tokenizer(),
)
first.train()
start = first.graph["fip"]
FIPTrainer(
    model=grow_head(start.load_model(), ["c", "d"], generator=torch.Generator().manual_seed(0)),
    args=arguments(folder, **settings, anchor_batch_size=6, anchor_label_weight=0.5, branch="second"),
    train_dataset=texts(32, seed=3).map(lambda row: {"labels": row["labels"] + 2}),
    anchor_dataset=texts(11, seed=2).add_column(TASK_COLUMN, [0] * 11),
    heldout_dataset=texts(9, seed=4).add_column(TASK_COLUMN, [0] * 9),
    eval_dataset=texts(16, seed=5),
    processing_class=tokenizer(),
    graph=first.graph,
    origin=Origin(parent=start),
    task_nodes=[[0, 1], [2, 3]],
    references=[first.graph.root],
).train()
"""


def travel(tmp_path, name, processes, per_device):
    run_processes(processes, tmp_path / "run.py", SCRIPT, tmp_path / name, per_device)
    return ModelGraph.load(tmp_path / name / "graph")["second"]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    one, two = travel(tmp_path, "one", 1, 8), travel(tmp_path, "two", 2, 4)
    assert_same_weights(*(load_file(node.folder / "model.safetensors") for node in (one, two)), tolerance=2e-5)
    assert one.metrics["accuracy"] == two.metrics["accuracy"]
    single, double = (node.protocol["budget"]["anchors"] for node in (one, two))
    assert single["disagreement"] == double["disagreement"]
    assert single["distance_by_task"] == pytest.approx(double["distance_by_task"], rel=1e-3)
    assert one.protocol["budget"]["held_out"][0]["value"] == two.protocol["budget"]["held_out"][0]["value"]
