"""The recorded path: where its points lie, what their nodes say, how a run continues."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, EarlyStoppingCallback, TrainerCallback

from hf_fip import FIPTrainer, InputError, ModelGraph
from hf_fip.path import last_complete_checkpoint
from tests.testing_utils import (
    ROOT,
    arguments,
    assert_same_weights,
    case,
    classifier,
    images,
    texts,
    tokenizer,
    weights,
)


KIND = "sequence-classification"


def test_a_node_is_a_complete_model_with_metrics_of_every_data_set(tmp_path):
    trainer = FIPTrainer(
        args=arguments(tmp_path),
        eval_dataset={"old": texts(16, seed=3), "new": texts(16, seed=4)},
        heldout_dataset=texts(20, seed=5, labels=None),
        **case(KIND),
    )
    trainer.train()
    for node in ModelGraph.load(tmp_path / "graph"):
        assert {"old/accuracy", "old/loss", "new/accuracy", "new/loss"} <= node.metrics.keys()
        assert AutoModelForSequenceClassification.from_pretrained(node.folder).num_labels == 2
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "fip_node.json"} <= set(
            os.listdir(node.folder)
        )
        assert not any(name.endswith((".bin", ".pt")) for name in os.listdir(node.folder))
    node = trainer.graph["fip"]
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(node.load_model()(**inputs).logits, trainer.model.eval()(**inputs).logits)
    root = trainer.graph.root
    moved = sum(
        (a - b).double().square().sum()
        for a, b in zip(weights(node.load_model()).values(), weights(root.load_model()).values(), strict=True)
    )
    assert node.euclidean_distance["root"] == pytest.approx(moved.sqrt().item(), rel=1e-5)
    first, second = trainer.graph.lineage(node)[1:]
    assert first.functional_distance["parent"] == pytest.approx(first.functional_distance["root"])
    assert second.functional_distance["parent"] != pytest.approx(second.functional_distance["root"])
    assert node.protocol["budget"]["held_out"][0]["inputs"] == 20
    assert (first.folder / "tokenizer.json").samefile(second.folder / "tokenizer.json"), "equal files are stored once"


def test_points_are_evenly_spaced_and_the_end_is_one_of_them(tmp_path):
    trainer = FIPTrainer(args=arguments(tmp_path, max_steps=10, path_points=4), **case(KIND))
    trainer.train()
    assert [node.step for node in trainer.graph] == [0, 2, 5, 8, 10]


def test_points_by_distance_travelled(tmp_path):
    trainer = FIPTrainer(args=arguments(tmp_path, max_steps=40, step_norm=0.3, learning_rate=3e-3), **case(KIND))
    trainer.train()
    nodes = list(trainer.graph)[1:]
    assert len(nodes) >= 2
    assert all(node.euclidean_distance["parent"] >= 0.3 for node in nodes[:-1])
    assert nodes[-1].step == 40


def test_a_run_that_is_stopped_early_records_its_end(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    trainer = FIPTrainer(args=arguments(tmp_path), callbacks=[Stop()], **case(KIND))
    trainer.train()
    assert [node.step for node in trainer.graph] == [0, 3, 4]


def test_recording_a_point_is_no_evaluation_event(tmp_path):
    """Early stopping counts the evaluations the user asked for, not the recorded points."""
    trainer = FIPTrainer(
        args=arguments(
            tmp_path,
            eval_strategy="steps",
            eval_steps=6,
            save_strategy="steps",
            save_steps=6,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
        ),
        eval_dataset=texts(8, seed=3),
        callbacks=[EarlyStoppingCallback(1)],
        **case(KIND),
    )
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "eval_loss" in log] == [6]


def test_a_lora_path_saves_adapters_only_and_leaves_the_base_alone(tmp_path):
    base = classifier()
    base.save_pretrained(tmp_path / "foundation")
    foundation = AutoModelForSequenceClassification.from_pretrained(tmp_path / "foundation")
    model = get_peft_model(foundation, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    trainer = FIPTrainer(
        model=model,
        args=arguments(tmp_path / "run", distance_budget=0.05),
        train_dataset=texts(32, seed=1),
        anchor_dataset=texts(12, seed=2, labels=None),
        processing_class=tokenizer(),
    )
    trainer.train()
    node = trainer.graph["fip"]
    files = os.listdir(node.folder)
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    loaded = node.load_model()
    assert isinstance(loaded, PeftModel)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**inputs).logits, trainer.model.eval()(**inputs).logits)
    assert trainer.state.log_history[0]["functional_distance"] == pytest.approx(0, abs=1e-9)
    assert node.euclidean_distance["root"] > 0


def test_reference_previous_measures_from_the_last_point(tmp_path):
    trainer = FIPTrainer(args=arguments(tmp_path, reference="previous"), **case(KIND))
    trainer.train()
    logs = [log["functional_distance"] for log in trainer.state.log_history if "functional_distance" in log]
    assert logs[3] == pytest.approx(0, abs=1e-9), "right after the point of step 3 the reference is the model itself"


def test_the_same_weights_open_a_graph_again_and_others_are_refused(tmp_path):
    FIPTrainer(args=arguments(tmp_path), **case(KIND)).train()
    again = FIPTrainer(args=arguments(tmp_path, learning_rate=2e-2), **case(KIND))
    again.train()
    assert len(again.graph) == 5, "one root, two paths of two points"
    other = case(KIND) | {"model": classifier(seed=9)}
    with pytest.raises(InputError, match="graph_dir=.*another graph_dir"):
        FIPTrainer(args=arguments(tmp_path), **other).train()


def test_the_same_run_again_records_nothing_twice(tmp_path):
    for _ in range(2):
        trainer = FIPTrainer(args=arguments(tmp_path), **case(KIND))
        trainer.train()
    assert len(trainer.graph) == 3


def resumable(folder, **changes) -> FIPTrainer:
    options = {"max_steps": 12, "path_points": 3, "save_strategy": "steps", "save_steps": 2, "distance_budget": 0.01}
    arguments_of = case("fill-mask")
    return FIPTrainer(args=arguments(folder, **{**options, **changes}), **arguments_of)


@pytest.mark.parametrize("reference", ["origin", "previous"])
def test_a_resumed_run_equals_an_uninterrupted_one(reference, tmp_path):
    whole = resumable(tmp_path / "whole", reference=reference)
    whole.train()
    broken = resumable(tmp_path / "broken", reference=reference)
    broken.add_callback(_StopAt(7))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = resumable(tmp_path / "broken", reference=reference)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights(whole.model), weights(resumed.model))
    assert [node.id for node in whole.graph] == [node.id for node in resumed.graph]
    for one, other in zip(whole.graph, resumed.graph, strict=True):
        assert one.functional_distance == other.functional_distance


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_checkpoint_cut_short_is_passed_over(tmp_path):
    trainer = resumable(tmp_path)
    trainer.train()
    assert last_complete_checkpoint(tmp_path).endswith("checkpoint-12")
    os.remove(tmp_path / "checkpoint-12" / "trainer_state.json")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"epoch": 1.')
    assert last_complete_checkpoint(tmp_path).endswith("checkpoint-8")


def test_resuming_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="resume_from_checkpoint=True"):
        resumable(tmp_path).train(resume_from_checkpoint=True)


KILLED = """
import sys
from tests.trainer.test_path import resumable
from hf_fip.path import last_complete_checkpoint
import torch
torch.set_num_threads(1)
trainer = resumable(sys.argv[1], max_steps=60, path_points=6)
print("ready", flush=True)
trainer.train(resume_from_checkpoint=last_complete_checkpoint(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_with_the_same_weights(tmp_path):
    (tmp_path / "run.py").write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(folder):
        command = [sys.executable, str(tmp_path / "run.py"), str(folder)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    whole = start(tmp_path / "whole")
    whole.stdout.readline()
    began = time.time()
    assert whole.wait(timeout=300) == 0
    duration = time.time() - began
    rng, kills = random.Random(0), 0
    while kills < 10:
        process = start(tmp_path / "killed")
        process.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.5) * duration)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
            process.wait()
            ModelGraph(tmp_path / "killed" / "graph")
        else:
            # It came to its end: begin the path again, as if nothing had been made.
            shutil.rmtree(tmp_path / "killed")
    assert start(tmp_path / "killed").wait(timeout=300) == 0
    graphs = [ModelGraph.load(tmp_path / name / "graph") for name in ("whole", "killed")]
    assert [node.id for node in graphs[0]] == [node.id for node in graphs[1]]
    for node in graphs[0]:
        assert_same_weights(weights(node.load_model()), weights(graphs[1][node.id].load_model()))


def test_fip_state_names_the_last_node(tmp_path):
    trainer = resumable(tmp_path)
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-8" / "fip_state.json").read_text())
    assert state["points"] == [4, 8]
    assert trainer.graph[state["last_node"]].step == 8


def test_images_without_padding_or_tokenizer_resume_too(tmp_path):
    def make():
        arguments_of = case("image-classification") | {"heldout_dataset": images(9, seed=7, labels=False)}
        return FIPTrainer(args=arguments(tmp_path, save_strategy="steps", save_steps=3), **arguments_of)

    first = make()
    first.train()
    shutil.rmtree(Path(tmp_path) / "checkpoint-6")
    second = make()
    second.train(resume_from_checkpoint=True)
    assert_same_weights(weights(first.model), weights(second.model))
