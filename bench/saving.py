"""What a commit costs training: the call that hands a state over, against the copy to memory that it must make
and the write that happens meanwhile.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from artclf.config import TrainConfig
from artclf.datasets import open_dataset
from artclf.interrupt import StopRequest
from artclf.quiet import load_tensorflow
from artclf.rundir import RunDir, RunStatus

SETTINGS = {"model.name": "mobilenet", "model.alpha": 0.75, "data.image_size": 96, "train.batch_size": 16}
STEPS = 60
EVERY = 6


def measure_saving(data: str) -> None:
    """Prints how long training stands still for a commit, and what a step costs while one is written."""
    load_tensorflow()
    from artclf.checkpoint import Checkpoints, LocalGenerations, size_bytes
    from artclf.data import Batch
    from artclf.training import Options, Training

    config = TrainConfig.from_settings(SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        training = Training(run, open_dataset(data), config, StopRequest(), RunStatus("running"), Options())
        training.restore()
        training.learner.set_learning_rate(1e-3)
        batch: Batch = next(iter(training.batches.epoch(0, 0)))

        def step_ms() -> float:
            started = time.perf_counter()
            training.learner.step(batch, 0)
            training.learner.sums()  # waits until the step has ended
            return (time.perf_counter() - started) * 1000

        for _ in range(5):
            step_ms()
        quiet = [step_ms() for _ in range(STEPS)]
        copies, calls, busy = [], [], []
        for number in range(STEPS):
            if number % EVERY == 0:
                started = time.perf_counter()
                training.learner.weight_arrays(), training.learner.optimizer_arrays()
                copies.append((time.perf_counter() - started) * 1000)
                started = time.perf_counter()
                snapshot = training._snapshot()
                training.saver.save(snapshot)
                calls.append((time.perf_counter() - started) * 1000)
            busy.append(step_ms())
        training.saver.flush()
        started = time.perf_counter()
        Checkpoints(LocalGenerations(Path(folder) / "other")).commit(snapshot.state, snapshot.arrays)
        write_ms = (time.perf_counter() - started) * 1000
        training.close()
    copy_ms, call_ms = statistics.median(copies), statistics.median(calls)
    print(f"state of {size_bytes(snapshot.arrays) / 1e6:.0f} MB: copy {copy_ms:.1f} ms, write {write_ms:.0f} ms")
    print(f"training stands still {call_ms:.1f} ms, {call_ms / copy_ms:.2f} of the copy (target: at most the copy)")
    print(
        f"a step takes {statistics.mean(quiet):.1f} ms alone, {statistics.mean(busy):.1f} ms with a commit "
        f"every {EVERY} steps: {statistics.mean(busy) / statistics.mean(quiet):.2f}"
    )
