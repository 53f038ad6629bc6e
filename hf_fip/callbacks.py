"""How the Trainer's loop reaches the path's recorder and the terms that change weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import TrainerCallback

from .term_log import TermLog


if TYPE_CHECKING:
    from .trainer import FIPTrainer


class RecordPoints(TrainerCallback):
    """Tells the recorder when the trainer has arrived at a path point."""

    def __init__(self, trainer: FIPTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if self.trainer.path is None:
            self.trainer._begin_path(None)
        # Only now a resumed run knows how many steps were done.
        self.trainer.term_log = TermLog(self.trainer.accelerator, self.trainer.terms, state.global_step)

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.change_weights(state.global_step + 1)

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.path.due():
            self.trainer.path.record()

    def on_train_end(self, args, state, control, **kwargs):
        # A callback may have stopped the run early: its end is a point too.
        path = self.trainer.path
        if state.global_step > 0 and (not path.points or path.points[-1] < state.global_step):
            path.record()
        path.finish()
