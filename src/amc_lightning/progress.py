"""What a person watches while a stage trains: one line with a bar in a terminal, a few lines of text elsewhere."""

import math
import time

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from amc_lightning.stage import StageModule

REFRESH_SECONDS = 0.5
LINE_SECONDS = 20.0


class StageProgress(pl.Callback):
    """Show stage, attack, epoch, and the running clean and per-attack error of the current epoch.

    Args:
        console: where to write.
        title: such as "stage 2/4 vap".
        mode: "bar" is a live bar, "lines" plain lines (at most one every 20 seconds and one at the end), "none"
            nothing; "auto" takes the bar in a terminal and lines elsewhere.
    """

    def __init__(self, console: Console, title: str, mode: str) -> None:
        self.console = console
        self.title = title
        self.mode = ("bar" if console.is_terminal else "lines") if mode == "auto" else mode
        self.progress: Progress | None = None
        self._last = 0.0
        self._start = 0.0
        self._text = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the display."""
        self._start = self._last = time.monotonic()
        if self.mode == "bar":
            self.progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
                expand=True,
                refresh_per_second=2,
            )
            total = int(trainer.estimated_stepping_batches)
            self.task = self.progress.add_task(self.title, total=total, completed=trainer.global_step, text="")
            self.progress.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Refresh at most twice a second: reading the errors waits for the device."""
        now = time.monotonic()
        pause = REFRESH_SECONDS if self.mode == "bar" else LINE_SECONDS
        if self.mode == "none" or now - self._last < pause:
            return
        self._last = now
        assert isinstance(pl_module, StageModule)
        self._text = self._describe(trainer, pl_module)
        if self.progress is not None:
            self.progress.update(self.task, completed=trainer.global_step, text=self._text)
        else:
            self._line(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the whole epoch's errors before the module resets them (callbacks run first)."""
        assert isinstance(pl_module, StageModule)
        self._text = self._describe(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the last state on the screen."""
        self._close(trainer)
        if self.mode == "lines":
            self._line(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close(trainer)

    def _close(self, trainer: pl.Trainer) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=trainer.global_step, text=self._text)
            self.progress.stop()
            self.progress = None

    def _line(self, trainer: pl.Trainer) -> None:
        seconds = time.monotonic() - self._start
        total = int(trainer.estimated_stepping_batches)
        # soft_wrap: a log file has no width
        self.console.print(
            f"{self.title}  step {trainer.global_step}/{total}  {self._text}  {seconds:.0f} s",
            soft_wrap=True,
            highlight=False,
        )

    def _describe(self, trainer: pl.Trainer, module: StageModule) -> str:
        loss = float(module.loss.compute())
        parts = [
            f"{name} {value:.1f}"
            for name, value in zip(module.sources, module.error.by_source(), strict=True)
            if not math.isnan(value)
        ]
        epoch = min(trainer.current_epoch + 1, trainer.max_epochs or 0)
        return f"epoch {epoch}/{trainer.max_epochs}  loss {loss:.3f}  err% {' '.join(parts)}"
