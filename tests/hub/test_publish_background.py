"""A path that is published while it is travelled: the Hub may fail, neither training nor a node may be lost."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import pytest
from transformers import TrainerCallback

from hf_fip import FIPTrainer, InputError
from hf_fip.hub import RetryPolicy
from hf_fip.hub.training import PublishPath
from tests.testing_utils import arguments, case

from .server import HubServer


def make_trainer(folder: Path, **changes: Any) -> FIPTrainer:
    changes = {"path_points": 3, "push_path_to_hub": True, "hub_collection": "demo family", **changes}
    trainer = FIPTrainer(args=arguments(folder, **changes), **case("sequence-classification"))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, PublishPath):
            callback.policy = RetryPolicy(attempts=2, first_wait=0.01)
    return trainer


class AtEachStep(TrainerCallback):
    def __init__(self, action: Any) -> None:
        self.action = action

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.action(state.global_step)


def published(hub: HubServer) -> list[str]:
    return [item["id"].removeprefix("tester/demo-family-") for item in hub.state()["collections"][0]["items"]]


def test_every_point_is_on_the_hub_when_training_ends(hub: HubServer, tmp_path: Path):
    trainer = make_trainer(tmp_path, hub_namespace="tester", hub_private_repo=True)
    trainer.train()
    assert published(hub) == list(trainer.graph.nodes) and len(trainer.graph) == 4
    assert all(repo["private"] for repo in hub.state()["repos"].values())
    before = hub.state()
    result = trainer.push_to_hub()
    assert result["skipped"] == list(trainer.graph.nodes) and hub.state() == before


def test_points_go_up_while_training_goes_on(hub: HubServer, tmp_path: Path):
    """Training is held at its last step until the first points are there: it need not end for them to be published."""
    trainer = make_trainer(tmp_path)
    seen: list[int] = []
    pause = Event()

    def wait(step: int) -> None:
        if step == 5:
            for _ in range(600):
                seen.append(hub.count("POST .*/items"))
                if seen[-1] >= 3:
                    return
                pause.wait(0.1)

    trainer.add_callback(AtEachStep(wait))
    trainer.train()
    assert seen[-1] == 3 and published(hub) == list(trainer.graph.nodes)


def test_training_does_not_wait_for_a_slow_hub(hub: HubServer, tmp_path: Path):
    """The Hub answers no commit before training has reached its last step."""
    steps: list[int] = []
    trainer = make_trainer(tmp_path)
    fault = hub.fault("/commit/", status=503, times=None)

    def at_step(step: int) -> None:
        steps.append(step)
        if step == 6:
            fault.times = fault.hits

    trainer.add_callback(AtEachStep(at_step))
    trainer.train()
    assert steps == [1, 2, 3, 4, 5, 6] and published(hub) == list(trainer.graph.nodes)


def test_a_hub_that_fails_costs_a_warning_and_the_next_push_makes_up_for_it(hub: HubServer, tmp_path: Path, caplog):
    trainer = make_trainer(tmp_path)
    hub.fault("/commit/", status=503, times=None)
    with caplog.at_level("WARNING", "hf_fip"):
        trainer.train()
    assert trainer.state.global_step == 6 and len(trainer.graph) == 4
    assert (
        "4 of 4 nodes are not published" in caplog.text
        and f"hf-fip push {trainer.graph.folder} --namespace tester --collection 'demo family'`" in caplog.text
    )
    hub.clear_faults()
    assert trainer.push_to_hub()["pushed"] == list(trainer.graph.nodes)
    assert published(hub) == list(trainer.graph.nodes)


def test_a_hub_that_cannot_be_reached_at_all_does_not_stop_training(hub: HubServer, tmp_path: Path, caplog):
    hub.fault(".", cut="before", times=None)
    trainer = make_trainer(tmp_path)
    with caplog.at_level("WARNING", "hf_fip"):
        trainer.train()
    assert len(trainer.graph) == 4 and "training goes on" in caplog.text
    assert "4 of 4 nodes are not published" in caplog.text


def test_what_a_killed_run_left_is_published_by_the_next(hub: HubServer, tmp_path: Path):
    def stop(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    first = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    hub.fault("/commit/", status=503, times=None)
    first.add_callback(AtEachStep(stop))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    hub.clear_faults()
    second = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    second.train(resume_from_checkpoint=True)
    assert published(hub) == list(second.graph.nodes) and len(second.graph) == 4


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"hub_namespace": "nobody"}, "hub_namespace='nobody': you are 'tester'"),
        ({"hub_token": "hf_wrong"}, "does not accept the token"),
    ],
)
def test_a_wrong_namespace_or_token_is_told_before_the_first_step(
    hub: HubServer, tmp_path: Path, option: dict[str, str], message: str
):
    steps: list[int] = []
    trainer = make_trainer(tmp_path, **option)
    trainer.add_callback(AtEachStep(steps.append))
    with pytest.raises(InputError, match=f"push_path_to_hub=True: .*{message}") as error:
        trainer.train()
    assert "\n" not in str(error.value) and "hf_wrong" not in str(error.value)
    assert steps == [] and hub.state()["repos"] == {}


def test_making_a_trainer_asks_the_hub_nothing(hub: HubServer, tmp_path: Path):
    make_trainer(tmp_path)
    assert hub.requests == []


def test_the_model_a_path_starts_from_is_the_root_s_base(hub: HubServer, tmp_path: Path):
    kinds = case("sequence-classification")
    kinds["model"].save_pretrained(tmp_path / "bert")
    hub.api.create_repo("tester/bert", private=True)
    hub.api.upload_folder(repo_id="tester/bert", folder_path=tmp_path / "bert")
    trainer = FIPTrainer(args=arguments(tmp_path / "out"), **{**kinds, "model": "tester/bert"})
    trainer.train()
    assert trainer.graph.root.protocol["model"] == "tester/bert"
    repo = trainer.push_to_hub(namespace="tester")["repos"][trainer.graph.root.id]
    assert "base_model: tester/bert" in hub.file(repo, "README.md").decode()
