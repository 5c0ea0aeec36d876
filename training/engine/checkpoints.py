"""When checkpoints are written, and how a run ends early."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from .files import BEST, LAST, PREVIOUS, alias, write_checkpoint
from .logs import CsvLogger


class Interrupted(Exception):
    """The run was asked to stop, and its state was saved.

    Attributes:
        signal: that asked.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.signal = number


class Diverged(Exception):
    """The loss is no number any more."""


class Checkpoints(Checkpoint):
    """`last.ckpt`, `previous.ckpt` (the one before it) and `best.ckpt` in the folder of the run.

    A file is written beside its name, brought to the disk, and renamed; so there is a good one at
    every moment. A disk that is full loses nothing either: the run goes on and says so, and tries
    again at the next interval. A loss that is NaN or infinite ends the run before the checkpoints
    are written over (but for float16, whose scaler passes over such steps). Ctrl-C and SIGTERM let
    the step end, save, and stop; a second one stops at once.

    Args:
        every_n_steps: distance of checkpoints.
        monitor: what makes a validation the best; the more the better.
    """

    def __init__(self, every_n_steps: int = 500, monitor: str = "val/mIoU") -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"checkpoint.every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps, self.monitor = every_n_steps, monitor
        self.folder: Path | None = None  # where to write; set when the run has one
        self.resumed: str | None = None  # checkpoint that the run goes on from
        self.best: float | None = None
        self.saved_step = -1  # of last.ckpt
        self.validated_step = -1  # of the last validation
        self.failure: OSError | None = None  # of the last attempt to save
        self._asked: int | None = None  # signal that asked to stop
        self._handlers: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "validated_step": self.validated_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.validated_step = state["best"], state["validated_step"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        first = trainer.strategy.broadcast(self.resumed)
        if first != self.resumed:
            raise RuntimeError(
                f"process {trainer.global_rank} would go on from {self.resumed}, the first one "
                f"from {first}; all nodes have to see the same folder of runs"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_step = trainer.global_step if self.resumed else -1
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._ask_to_stop)
        if self.resumed:
            self._validate_again(trainer)

    def _validate_again(self, trainer: Trainer) -> None:
        """Do the validation that was due after the checkpoint's step, and was cut off."""
        loop, batches = trainer.fit_loop.epoch_loop, trainer.fit_loop.total_batch_idx + 1
        due = loop._should_check_val_epoch() and batches % trainer.val_check_batch == 0
        if not due or self.validated_step == trainer.global_step or not trainer.limit_val_batches:
            return
        loop.val_loop.restarting = False
        trainer.validating = True
        loop.val_loop.run()
        trainer.training = True

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            self._restore_handlers()
            raise KeyboardInterrupt
        self._asked = number
        print(
            "\nattnops train: ending this step and saving; once more stops at once",
            file=sys.stderr,
            flush=True,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stop = self._asked is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate():
            return  # half a step cannot be saved; a signal waits for its end
        due = step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop
        if stop or (due and step != self.saved_step):
            self._refuse_what_diverged(trainer, outputs)
            self.save(trainer)
        if stop and step != trainer.max_steps:
            self._end(trainer, step)

    def _refuse_what_diverged(self, trainer: Trainer, outputs: Any) -> None:
        bad = not bool(outputs["loss"].isfinite()) and trainer.precision != "16-mixed"
        if trainer.world_size > 1:
            bad = trainer.strategy.reduce_boolean_decision(bad, all=False)
        if bad:
            raise Diverged(
                f"the loss at step {trainer.global_step} is {float(outputs['loss'])}; the "
                "checkpoints before it are kept. Lower --model.optimizer.lr, lengthen "
                "--model.schedule.warmup_steps, or clip with --trainer.gradient_clip_val"
            )

    def _end(self, trainer: Trainer, step: int) -> None:
        if self.failure is not None:
            raise self.failure
        raise Interrupted(
            self._asked or signal.SIGTERM,
            f"stopped after step {step}, which {self.folder} keeps; the same command with "
            "--resume auto goes on from there",
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = trainer.callback_metrics.get(self.monitor)
        self.validated_step = trainer.global_step
        better = score is not None and (self.best is None or float(score) > self.best)
        if better:
            self.best = float(score)
        if better or trainer.should_stop:
            self.save(trainer)
        if better and trainer.is_global_zero and self.failure is None:
            try:
                alias(self.folder / LAST, self.folder / BEST)
            except OSError as error:
                self._report(error)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_handlers()
        if self.failure is not None:
            raise self.failure

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore_handlers()

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt`; what was it becomes `previous.ckpt` if it is of an earlier step."""
        for logger in trainer.loggers:
            if isinstance(logger, CsvLogger):
                logger.save()
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if trainer.is_global_zero:
            try:
                earlier = trainer.global_step != self.saved_step
                before = self.folder / PREVIOUS if earlier else None
                write_checkpoint(state, self.folder / LAST, before)
            except OSError as error:
                self._report(error)
            else:
                self.failure = None
                self.saved_step = trainer.global_step
        else:
            self.saved_step = trainer.global_step
        trainer.strategy.barrier("attnops.checkpoint")

    def _report(self, error: OSError) -> None:
        self.failure = error
        print(
            f"\nattnops train: no checkpoint could be written to {self.folder} ({error}); the "
            "earlier one is untouched and the training goes on. Make room",
            file=sys.stderr,
            flush=True,
        )

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
