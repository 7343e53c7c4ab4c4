"""Killed at random moments, again and again, a run still ends as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from artclf.records import Dataset
from tests.conftest import Amount, Measured
from tests.crash import Nursery, stories

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
