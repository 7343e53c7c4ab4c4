"""What people see in the terminal: tables that fit 80 columns, and the live progress of a submit."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from artclf.errors import StorageError, printable
from artclf.rundir import read_json
from jobs.cells import duration
from jobs.grid import Trial
from jobs.plan import Step
from jobs.spec import Outcome
from jobs.study import Study

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

WIDTH = 80


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = WIDTH) -> str:
    """Returns aligned columns; the last column is cut where the line would pass the width."""
    cells = [[printable(str(cell)).replace("\n", " ") for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        line = "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()
        lines.append(line if len(line) <= width else line[: width - 1] + "…")
    return "\n".join(lines)


def progress_of(study: Study, trial: Trial) -> dict[str, float]:
    """Returns a running trial's own figures (epoch, epochs, step, steps, accuracy, seconds_left), or nothing yet."""
    try:
        content = read_json(study.run(trial.trial_id).progress)
    except StorageError:
        return {}
    return dict(content) if isinstance(content, dict) else {}


def fraction(progress: dict[str, float]) -> float:
    """Returns how much of its training a trial has done, 0..1."""
    if not progress:
        return 0.0
    return min(1.0, (progress["epoch"] + progress["step"] / max(progress["steps"], 1)) / max(progress["epochs"], 1))


class LineWatcher:
    """Says what happens a line at a time, for logs and pipes."""

    def __init__(self, study: Study, total: int) -> None:
        self._study, self._total, self._ended = study, total, 0
        self._unfinished = 0.0
        self._stopping = False
        self._waited_for = ""

    def started(self, trial: Trial, step: Step) -> None:
        """Says that a trial began."""
        word = {"wait": "waits for", "continue": "continues", "retry": "retries"}.get(step.action, "starts")
        self.say(f"{word} {trial.trial_id}  {trial.label}" + ("" if step.why == "new" else f"  ({step.why})"))

    def ended(self, trial: Trial, result: Outcome) -> None:
        """Says how a trial ended."""
        self._ended += 1
        if result.state in ("interrupted", "failed"):
            self._unfinished += 1 - fraction(progress_of(self._study, trial))
        reason = f": {result.reason}" if result.reason else ""
        self.say(f"{result.state} {trial.trial_id}  {trial.label}  [{self._ended}/{self._total}]{reason}")

    def tick(self, running: Sequence[Trial]) -> None:
        """Says nothing: a log needs no bars."""

    def holding(self, why: str, hold_s: float) -> None:
        """Says that nothing can be started now, and why."""
        what = why if why != self._waited_for else "as before"
        self._waited_for = why
        self.say(f"waiting, the next try in {duration(hold_s)}: {what}")

    def stopping(self, running: Sequence[Trial], *, go_on: bool) -> None:
        """Says that a stop was asked for."""
        self._stopping = True
        names = ", ".join(trial.trial_id for trial in running) or "none"
        ends = "go on" if go_on else "save and end"
        self.say(f"stopping: nothing more is started; running trials {ends}: {names}")

    def say(self, text: str) -> None:
        """Prints a line; if nobody reads any more (``| head``), the trials go on all the same."""
        with contextlib.suppress(OSError):
            print(printable(text), flush=True)

    def __enter__(self) -> LineWatcher:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class BarWatcher(LineWatcher):
    """Shows a bar for each running trial and one for the grid, with the time left."""

    def __init__(self, study: Study, total: int) -> None:
        super().__init__(study, total)
        from rich.progress import BarColumn, Progress, TextColumn

        self._bars: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[note]}", markup=False),
            refresh_per_second=4,
        )
        self._grid: TaskID = self._bars.add_task("grid".ljust(30), total=total, note="")
        self._of: dict[str, TaskID] = {}

    def __enter__(self) -> BarWatcher:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            if self._ended == self._total:
                self._bars.update(self._grid, completed=self._total, note="")
            self._bars.stop()

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._bars.console.print(printable(text), markup=False, highlight=False)

    def started(self, trial: Trial, step: Step) -> None:
        super().started(trial, step)
        name = f"{trial.trial_id} {trial.label}"
        name = name if len(name) <= 30 else name[:29] + "…"
        if trial.trial_id in self._of:  # its next job
            self._bars.remove_task(self._of[trial.trial_id])
        self._of[trial.trial_id] = self._bars.add_task(name.ljust(30), total=1.0, note="starting")

    def ended(self, trial: Trial, result: Outcome) -> None:
        self._bars.remove_task(self._of.pop(trial.trial_id))
        super().ended(trial, result)

    def tick(self, running: Sequence[Trial]) -> None:
        """Reads the running trials' progress and moves the bars."""
        parts = []
        for trial in running:
            progress = progress_of(self._study, trial)
            parts.append(fraction(progress))
            if progress:
                note = f"{duration(progress['seconds_left'])} left" if parts[-1] < 1 else "evaluating"
                self._bars.update(self._of[trial.trial_id], completed=parts[-1], note=note)
        done = self._ended - self._unfinished + sum(parts)
        elapsed = self._bars.tasks[0].elapsed or 0.0
        left = (
            f"{duration(elapsed * (self._total - done) / done)} left"
            if done > 0.05 and elapsed > 5 and not self._stopping
            else ""
        )
        self._bars.update(self._grid, completed=done, note=left)


def watcher(study: Study, total: int) -> LineWatcher:
    """Returns bars on a terminal, lines elsewhere."""
    return (BarWatcher if sys.stdout.isatty() else LineWatcher)(study, total)
