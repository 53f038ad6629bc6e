"""A trainer and the Hub: its path published while it is travelled, or at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.utils import logging

from ..errors import InputError
from .background import BackgroundPublisher
from .client import Hub
from .retry import HubError, RetryPolicy


if TYPE_CHECKING:
    from ..trainer import FIPTrainer

logger = logging.get_logger(__name__)


def push_path(trainer: FIPTrainer, **kwargs: Any) -> dict[str, Any] | None:
    """
    Publishes the graph of a trainer from its main process; the others wait.

    Args:
        trainer (`FIPTrainer`): the trainer; its arguments are the defaults.
        kwargs: as [`ModelGraph.push_to_hub`] takes them.

    Returns:
        `dict`: what was published; `None` on the other processes.
    """
    graph, args = trainer.graph, trainer.args
    defaults = {
        "namespace": args.hub_namespace,
        "collection": args.hub_collection,
        "layout": args.hub_layout,
        "private": args.hub_private_repo,
        "token": args.hub_token,
    }
    try:
        return graph.push_to_hub(**{**defaults, **kwargs}) if trainer.is_world_process_zero() else None
    finally:
        trainer.accelerator.wait_for_everyone()


class PublishPath(TrainerCallback):
    """
    Runs a [`BackgroundPublisher`] for the length of a training, on the main process. A Hub that fails does not stop
    training; a wrong token or namespace does, before the first step.

    Args:
        trainer (`FIPTrainer`): the trainer.
        policy ([`RetryPolicy`], *optional*): how patient calls are.
    """

    def __init__(self, trainer: FIPTrainer, policy: RetryPolicy | None = None) -> None:
        self.trainer = trainer
        self.policy = policy
        self.publisher: BackgroundPublisher | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        problem: list[str | None] = [None]
        if self.publisher is not None:
            # A training before this one did not come to its end.
            self.publisher.leave()
        if self.trainer.is_world_process_zero():
            self.publisher = BackgroundPublisher(
                self.trainer.path.graph.folder,
                Hub(args.hub_token, policy=self.policy),
                args.hub_namespace,
                args.hub_collection,
                args.hub_layout,
                args.hub_private_repo,
            )
            try:
                self.publisher.check()
            except InputError as error:
                problem = [str(error)]
            except HubError as error:
                logger.warning(f"Hub: {error}; training goes on, and publishing is tried at each point")
        if args.world_size > 1:
            broadcast_object_list(problem)
        if problem[0] is not None:
            raise InputError(f"push_path_to_hub=True: {problem[0]}")
        if self.publisher is not None:
            self.trainer.path.on_recorded = self.publisher.notify
            self.publisher.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.publisher is not None:
            self.publisher.close()
            self.publisher = None
