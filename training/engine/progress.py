"""What a run shows while it goes: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import Profiler
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text


class DataTimer(Profiler):
    """Adds up how long the training waited for batches.

    Attributes:
        seconds: in total.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = self._began = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self._began = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter() - self._began


class Throughput(Callback):
    """Loss, rate, images a second, the share of time that steps waited for data, and memory, in
    the logs.

    On a GPU, whose queue runs ahead of the process, the share is at most what is shown.

    Args:
        timer: of the data.

    Attributes:
        rate: images a second of all processes since the last log; NaN before the first.
        waiting: share of the time since then.
    """

    def __init__(self, timer: DataTimer) -> None:
        self.timer = timer
        self.rate = self.waiting = math.nan
        self.total_time = self.total_waiting = 0.0
        self.images = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()

    def _begin(self) -> None:
        self._images, self._worked, self._waited = 0, 0.0, self.timer.seconds

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._worked += time.perf_counter() - self._started
        self._images += len(batch[0]) * trainer.world_size
        due = trainer.global_step % trainer.log_every_n_steps == 0
        if due and not trainer.fit_loop._should_accumulate():
            self._log(trainer, pl_module, {"train/loss": loss_of(trainer, outputs)})

    def _log(self, trainer: Trainer, pl_module: LightningModule, losses: dict[str, float]) -> None:
        waited = self.timer.seconds - self._waited
        total = self._worked + waited
        self.rate, self.waiting = self._images / total, waited / total
        self.total_time += total
        self.total_waiting += waited
        self.images += self._images
        values = losses | {
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "images_per_second": self.rate,
            "waiting_for_data": self.waiting,
            "memory_gib": memory_gib(pl_module.device),
        }
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        self._begin()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._images:
            self._log(trainer, pl_module, {})


def loss_of(trainer: Trainer, outputs: Any) -> float:
    """The loss of a batch; Lightning divides it where gradients are accumulated."""
    return float(outputs["loss"]) * trainer.accumulate_grad_batches


def memory_gib(device: torch.device) -> float:
    """Peak memory: the allocator's on a GPU, else that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class _Remaining(ProgressColumn):
    """Time to the last step at the present rate."""

    def render(self, task: Task) -> Text:
        speed = task.fields.get("speed") or 0.0
        if speed <= 0:
            return Text("--:--")
        return Text(clock((task.total - task.completed) / speed))


def clock(seconds: float) -> str:
    """h:mm:ss, or mm:ss below an hour."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


class Display(Callback):
    """Step, loss, last mIoU, images a second, remaining time and memory.

    Args:
        throughput: measures images a second.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self.console = Console(stderr=True)
        self.progress: Progress | None = None
        self._task: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._loss = self._score = math.nan
        self._first, self._began = trainer.global_step, time.perf_counter()
        self._outside = 0.0  # seconds of validations
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        self.progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            _Remaining(),
            console=self.console,
            refresh_per_second=2,
        )
        self._task = self.progress.add_task(
            "train", total=trainer.max_steps, completed=self._first, text="", speed=0.0
        )
        self.progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        shown = step % trainer.log_every_n_steps == 0 or step == trainer.max_steps
        if not trainer.is_global_zero or trainer.fit_loop._should_accumulate():
            return
        if shown or self._first + 1 == step:  # reading a loss waits for the device
            self._loss = loss_of(trainer, outputs)
        speed = self._speed(step)
        if self.progress is not None:
            text = self._text(pl_module, batch, speed)
            self.progress.update(self._task, completed=step, text=text, speed=speed)
        elif shown:
            left = clock((trainer.max_steps - step) / speed)
            print(
                f"step {step}/{trainer.max_steps}  {self._text(pl_module, batch, speed)}  "
                f"{left} left",
                flush=True,
            )

    def _speed(self, step: int) -> float:
        """Steps a second."""
        seconds = time.perf_counter() - self._began - self._outside
        return (step - self._first) / max(seconds, 1e-9)

    def _text(self, pl_module: LightningModule, batch: Any, speed: float) -> str:
        rate = self.throughput.rate
        if math.isnan(rate):
            accumulated = pl_module.trainer.accumulate_grad_batches
            rate = speed * len(batch[0]) * accumulated * pl_module.trainer.world_size
        parts = [f"loss {self._loss:.4f}", f"{rate:.1f} img/s"]
        if not math.isnan(self._score):
            parts.append(f"mIoU {self._score:.4f}")
        parts.append(f"{memory_gib(pl_module.device):.1f} GiB")
        return "  ".join(parts)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._outside += time.perf_counter() - self._validation_began
        values = trainer.callback_metrics
        self._score = float(values.get("val/mIoU", math.nan))
        if trainer.is_global_zero:
            accuracy = float(values.get("val/accuracy", math.nan))
            message = f"validation at step {trainer.global_step}: mIoU {self._score:.4f}"
            message += f", accuracy {accuracy:.4f}"
            where = self.console.print if self.progress is not None else print
            where(message)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
        measured = self.throughput
        if trainer.is_global_zero and measured.total_time > 0:
            print(
                f"{measured.images / measured.total_time:.1f} img/s over the run, "
                f"{100 * measured.total_waiting / measured.total_time:.1f} % of the time waiting "
                f"for data, {memory_gib(pl_module.device):.1f} GiB at most"
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
