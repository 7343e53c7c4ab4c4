"""Killed at random moments, again and again, a run still ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from artclf.records import Dataset
from artclf.rundir import RunDir
from tests.conftest import Amount, Measured
from tests.crash import Attempt, Nursery, digest, endure, metrics_of, random_faults, same

SMALL = {
    "model.name": "cnn_small",
    "model.head": [16],
    "data.image_size": 24,
    "data.augment.flip": True,
    "train.batch_size": 4,
    "train.epochs": 8,
}
MOBILENET: dict[str, Any] = {
    "model.name": "mobilenet",
    "model.alpha": 0.75,
    "model.trainable": 12,
    "model.dropout": 0.2,
    "data.image_size": 96,
    "data.classes": ["Gustav_Klimt", "Paul_Klee"],
    "train.batch_size": 16,
    "train.epochs": 3,
}


def arguments(run: RunDir, data: Path, settings: dict[str, Any]) -> list[str]:
    chosen = [f"--set={name}={_yaml(value)}" for name, value in settings.items()]
    return ["--run-dir", str(run.path), "--data", str(data), *chosen]


def _yaml(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value).lower()


def truth(nursery: Nursery, folder: Path, data: Path, settings: dict[str, Any]) -> tuple[RunDir, float]:
    """Returns a run that nothing broke, and how long it took."""
    run = RunDir(folder / "whole")
    child = nursery.start(arguments(run, data, settings))
    assert child.wait() == 0, child.output()
    status = run.read_status()
    assert status is not None
    return run, status.seconds


def stories(
    nursery: Nursery, folder: Path, data: Path, settings: dict[str, Any], kills: int, seed: int
) -> tuple[int, int]:
    """Kills runs until so many kills were delivered; returns (kills, runs). A story has at most 12 kills."""
    whole, seconds = truth(nursery, folder, data, settings)
    expected = digest(whole)
    delivered = runs = 0
    while delivered < kills:
        run = RunDir(folder / f"broken-{runs}")
        faults = random_faults(seed + runs, min(12, kills - delivered), seconds + 0.5)
        attempts: Sequence[Attempt] = endure(
            lambda fault, run=run: nursery.start(arguments(run, data, settings)),  # type: ignore[misc]
            run,
            faults,
            metrics_of(whole),
        )
        delivered += sum(attempt.code == -9 for attempt in attempts)
        runs += 1
        assert same(digest(run), expected) == [], f"seed {seed + runs - 1}, {[str(a.fault) for a in attempts]}"
    return delivered, runs


@pytest.mark.parametrize("how_often", ["an epoch", "a step"])
def test_no_random_kill_loses_a_committed_state_or_changes_a_weight(
    how_often: str, nursery: Nursery, tiny_set: Dataset, tmp_path: Path, amount: Amount, measured: Measured
) -> None:
    often = {"train.checkpoint_every.minutes": 1e-5} if how_often == "a step" else {}  # saving never pauses
    kills, runs = stories(nursery, tmp_path, tiny_set.folder, {**SMALL, **often}, amount(8, 90), seed=100)
    measured(f"{kills} kill -9 over {runs} runs, committing every {how_often}: 0 unreadable, 0 lost, all equal")


def test_no_random_kill_changes_what_mobilenet_learns_from_real_pictures(
    nursery: Nursery, shared_data: Path, tmp_path: Path, amount: Amount, measured: Measured
) -> None:
    from artclf.prepare import Options, prepare

    sources = [str(shared_data / "paintings" / name) for name in MOBILENET["data.classes"]]
    data = prepare(sources, tmp_path / "data", Options()).folder
    weights = shared_data / "weights" / "mobilenet_7_5_224_tf_no_top.h5"
    settings = {**MOBILENET, "model.weights": str(weights)}
    kills, runs = stories(nursery, tmp_path, data, settings, amount(2, 25), seed=300)
    measured(f"{kills} kill -9 over {runs} runs of MobileNet on real pictures: 0 unreadable, 0 lost, all equal")
