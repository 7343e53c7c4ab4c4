"""Stopped or crashed anywhere and started again, a run ends with the same bits: for all that the trainer offers."""

from __future__ import annotations

import random
import typing
from pathlib import Path
from typing import Any, Literal

import pytest

from artclf.config import TrainConfig, flatten, is_group, nest, setting_names
from artclf.errors import Interrupted
from artclf.interrupt import StopRequest
from artclf.records import Dataset
from artclf.rundir import RunDir, read_json
from artclf.training import Options, train
from tests.conftest import Amount, Measured
from tests.crash import Crash, LeaveAt, Nursery, digest, newest_place, same, stories
from tests.faults.test_kills import SMALL as KILLED

SMALL = {
    "model.name": "cnn_tiny",
    "model.head": [16],
    "data.image_size": 16,
    "train.batch_size": 4,
    "train.epochs": 3,
}

FEATURES: dict[str, dict[str, Any]] = {
    "dropout and flips": {"model.name": "cnn_small", "data.image_size": 24, "data.augment": {"flip": True}},
    "dropout alone": {"model.name": "cnn_small", "data.image_size": 24, "model.dropout": 0.5},
    "several random crops": {"data.view": "crop", "data.crops": 2, "train.batch_size": 8},
    "grey pictures between bars": {"data.colour": "grey", "data.view": "pad"},
    "squeezed pictures, pooled by maximum": {"data.view": "resize", "model.pooling": "max"},
    "balanced sampler and class weights": {"data.sampler": "balanced", "train.class_weight": "balanced"},
    "adam": {"train.optimizer": "adam", "train.schedule": "constant"},
    "sgd with steps": {"train.optimizer": "sgd", "train.schedule": "steps", "train.steps": {"every": 1, "factor": 0.5}},
    "rmsprop with cosine": {"train.optimizer": "rmsprop", "train.schedule": "cosine"},
    "adamw with a plateau": {
        "train.optimizer": "adamw",
        "train.schedule": "plateau",
        "train.plateau": {"patience": 1, "factor": 0.3, "min_learning_rate": 1e-4},
        "train.learning_rate": 0.02,
        "train.epochs": 4,
    },
    "a trainable backbone": {
        "model.name": "mobilenet",
        "model.alpha": 0.25,
        "model.dropout": 0.2,
        "model.trainable": "all",
        "data.image_size": 32,
    },
    "a frozen backbone": {
        "model.name": "mobilenet",
        "model.alpha": 0.25,
        "model.trainable": "none",
        "data.image_size": 32,
    },
    "two phases of a backbone": {
        "model.name": "mobilenet",
        "model.alpha": 0.25,
        "data.image_size": 32,
        "train.phases": [{"epochs": 1, "trainable": "none"}, {"epochs": 2, "trainable": 5, "learning_rate": 1e-4}],
    },
    "early stopping by the loss": {
        "train.early_stopping": {"metric": "val_loss", "patience": 1, "restore_best": True},
        "train.learning_rate": 0.05,
        "train.epochs": 5,
    },
    "the last weights, best by accuracy": {
        "train.early_stopping": {"metric": "val_accuracy", "patience": 2, "restore_best": False}
    },
    "best by the first five": {"train.early_stopping": {"metric": "val_top5_accuracy"}},
    "batch normalisation and smoothing": {
        "model.head": [{"units": 8, "batch_norm": True}],
        "train.label_smoothing": 0.1,
        "model.l2": 1e-3,
    },
    "rising filters": {"model.name": "cnn_wide", "model.filters": [4, 8], "data.image_size": 24},
    "float16 with its loss scale": {"train.mixed_precision": "float16", "model.dropout": 0.3},
    "bfloat16": {"train.mixed_precision": "bfloat16"},
}
"""What the trainer offers. A new feature joins the test by being named here; another test sees to that."""

NO_FEATURES = {
    "data.classes": "chooses the pictures before any training",
    "model.weights": "the weights at the beginning",
    "train.seed": "every run has one",
    "train.checkpoint_every.epochs": "when it is saved, not what",
    "train.checkpoint_every.minutes": "when it is saved, not what",
    "evaluate.batch_size": "how many are scored at once",
}


def places(steps: int, epochs: int, middle: int, seed: int) -> list[tuple[int, int]]:
    """Returns, in order, the (epoch, step) to leave at: the end of every epoch, as step 0 of the next, and so
    many random steps within the epochs, the last of which is met while the epoch is validated."""
    within = [(epoch, step) for epoch in range(epochs) for step in range(1, steps + 1)]
    chosen = random.Random(seed).sample(within, min(middle, len(within)))
    return sorted([*chosen, *((epoch, 0) for epoch in range(1, epochs + 1))])


def leave_and_go_on(run: RunDir, dataset: Dataset, config: TrainConfig, steps: int, epochs: int, middle: int) -> int:
    """Trains a run of so many epochs (early stopping may leave some out) and steps an epoch, leaving it at many
    places, each time with another number of threads; returns how many."""
    looks = steps + 1  # of an epoch: its steps, and one batch of validation
    left, at = 0, 0
    for epoch, step in places(steps, epochs, middle, seed=len(run.path.name)):
        in_validation = step == steps
        # The end of an epoch is committed by itself: crash in the next step, or in the last evaluation.
        wanted = epoch * looks + (step or 1) + in_validation
        options = Options(threads=(1, 2, 8)[left % 3])
        with pytest.raises((Interrupted, Crash)):
            train(run, dataset, config, LeaveAt(wanted - at, crash=step == 0), options)
        left += 1
        assert newest_place(run) == (epoch, step)
        at = epoch * looks + step
    train(run, dataset, config, StopRequest(), Options(threads=1))
    return left


@pytest.mark.parametrize("feature", FEATURES)
def test_left_at_every_epoch_and_at_random_steps_equals_never_left(
    tiny_set: Dataset, tmp_path: Path, feature: str, amount: Amount, measured: Measured
) -> None:
    config = TrainConfig.from_settings({**SMALL, **FEATURES[feature]})
    whole, broken = RunDir(tmp_path / "whole"), RunDir(tmp_path / "broken")
    train(whole, tiny_set, config, StopRequest(), Options(threads=2))
    steps = read_json(whole.progress)["steps"]
    epochs, middle = len(whole.read_metrics()), amount(1, 50)
    left = leave_and_go_on(broken, tiny_set, config, steps, epochs, middle)
    assert left == epochs + min(middle, epochs * steps)
    assert same(digest(broken), digest(whole)) == []
    measured(f"left {left} times in {epochs} epochs of {steps} steps: weights, metrics, scores equal")


def test_every_setting_of_the_trainer_is_in_the_list_of_features() -> None:
    """So a new setting cannot be forgotten there."""
    named = {name for settings in (SMALL, *FEATURES.values()) for name in flatten(nest(settings))}
    assert set(setting_names()) - named - NO_FEATURES.keys() == set()


def test_every_choice_of_a_setting_is_in_the_list_of_features() -> None:
    used: dict[str, set[Any]] = {}
    for settings in ({}, *FEATURES.values()):
        for name, value in TrainConfig.from_settings({**SMALL, **settings}).flat().items():
            used.setdefault(name, set()).add(value if isinstance(value, str) else repr(value))
    for name in setting_names():
        if name != "model.name":  # the backbones differ in nothing that a resume could meet
            assert set(_choices(name)) <= used[name], name


def _choices(name: str) -> tuple[Any, ...]:
    annotation: Any = TrainConfig
    for part in name.split("."):
        annotation = annotation.model_fields[part].annotation
    assert not is_group(name)
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_killed_and_resumed_is_equal_with_any_number_of_threads(
    threads: int, tiny_set: Dataset, tmp_path: Path, amount: Amount, measured: Measured
) -> None:
    environment = {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": str(threads)}
    trainers = Nursery(tmp_path, environment, ["--threads", str(threads)])
    kills, runs = stories(trainers, tmp_path, tiny_set.folder, KILLED, amount(2, 12), seed=threads)
    measured(f"{threads} threads, {kills} kills over {runs} runs: all equal")
