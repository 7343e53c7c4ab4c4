"""Settings: what is accepted, what is refused in which words, and what names a trial."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artclf.config import (
    OWN_MODELS,
    Phase,
    TrainConfig,
    check_settings,
    describe,
    nest,
    own_defaults,
    parse_setting,
    setting_names,
    trial_id,
)
from artclf.errors import ConfigError


def config(**given: Any) -> TrainConfig:
    """Returns the config of settings whose dots are written as two underscores."""
    return TrainConfig.from_settings({name.replace("__", "."): value for name, value in given.items()})


def same_trial(*configs: TrainConfig) -> bool:
    return len({trial_id(each, "digest") for each in configs}) == 1


# -- bounds and messages --------------------------------------------------------------------------

REFUSED = [
    ("model.dropout", 1.0, "expected a number from 0 to 1 (1 excluded) or null, received 1.0."),
    ("model.dropout", "high", "expected a number from 0 to 1 (1 excluded) or null, received 'high', a text."),
    ("model.dropout", True, "expected a number from 0 to 1 (1 excluded) or null, received true."),
    ("model.dropout", float("nan"), "expected a number from 0 to 1 (1 excluded) or null, received nan."),
    ("model.l2", 0, "expected a number from 0 to 10 (0 excluded) or null, received 0."),
    ("model.filters", [], "expected a list (each a whole number from 1 to 4096), received a list of 0: []."),
    ("model.trainable", 0, "expected one of none, all or a whole number from 1 to 10000, received 0."),
    ("model.weights", "", "expected a text of 1 to 256 characters, received '', a text."),
    ("model.weights", "\ud800", "expected text that UTF-8 can hold, received '\\ud800', a text."),
    ("train.learning_rate", float("inf"), "expected a number from 0 to 10 (0 excluded), received inf."),
    ("train.batch_size", None, "expected a whole number from 1 to 4096, received null."),
    ("train.batch_size", 32.0, "expected a whole number from 1 to 4096, received 32.0."),
    ("train.seed", -1, "expected a whole number from 0 to 4294967295, received -1."),
    ("train.seed", 10**80, f"expected a whole number from 0 to 4294967295, received 1{'0' * 59}…."),
    ("train.checkpoint_every", 3, "expected settings below it (epochs, minutes), received 3."),
    ("data.augment.flip", "yes", "expected true or false, received 'yes', a text."),
]


@pytest.mark.parametrize(("name", "value", "problem"), REFUSED, ids=[f"{n}={v!r:.20}" for n, v, _ in REFUSED])
def test_a_wrong_value_is_refused_in_words(name: str, value: Any, problem: str) -> None:
    assert [str(fault) for fault in check_settings({name: value})] == [f"{name}: {problem}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.dropout", 0),
        ("model.dropout", 0.999),
        ("model.dropout", None),
        ("model.l2", 10),
        ("model.head", []),
        ("model.head", [64, {"units": 32, "batch_norm": True}]),
        ("model.weights", "x" * 256),
        ("data.classes", {"top": 2}),
        ("data.classes", ["a", "b"]),
        ("train.seed", 2**32 - 1),
        ("train.phases", [{"epochs": 1}]),
    ],
)
def test_values_at_the_bounds_are_accepted(name: str, value: Any) -> None:
    assert check_settings({name: value}) == []


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("model.droput", "model.dropout"),
        ("train.learning_rte", "train.learning_rate"),
        ("data.augment.flp", "data.augment.flip"),
    ],
)
def test_a_misspelt_name_gets_the_nearest_right_one(wrong: str, right: str) -> None:
    assert [str(fault) for fault in check_settings({wrong: 1})] == [f"{wrong}: no such setting. Did you mean {right}?"]


def test_a_fault_inside_a_list_is_named_where_it_is_and_only_there() -> None:
    found = check_settings({"train.phases": [{"epochs": 3}, {"epochs": 0, "trainable": "some"}]})
    assert [str(fault) for fault in found] == [
        "train.phases[1].epochs: expected a whole number from 1 to 10000, received 0.",
        "train.phases[1].trainable: expected one of none, all or a whole number from 1 to 10000 or null, "
        "received 'some', a text.",
    ]


def test_all_faults_are_raised_at_once_a_line_each() -> None:
    with pytest.raises(ConfigError) as raised:
        TrainConfig.from_settings({"model": {"dropout": 2}, "train.seed": "x", "modle.name": "y"}, where="here")
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("here: ") for line in lines)


def test_every_setting_can_be_described() -> None:
    for name, default in setting_names().items():
        faults = check_settings({name: {"no": "such"}})
        assert len(faults) == 1, name
        assert str(faults[0]).startswith(f"{name}: expected "), (name, default)


def test_describe_names_alternatives() -> None:
    assert describe(int | None) == "a whole number or null"
    assert describe(tuple[int, ...] | bool) == "a list (each a whole number) or true or false"


# -- names and forms ------------------------------------------------------------------------------

SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "model.name": st.sampled_from(["cnn_small", "cnn_wide", "resnet50", "mobilenet"]),
        "model.dropout": st.none() | st.floats(0, 1, exclude_max=True),
        "model.head": st.none()
        | st.lists(st.integers(1, 9) | st.builds(lambda n: {"units": n}, st.integers(1, 9)), max_size=3),
        "model.alpha": st.floats(0.1, 2),
        "model.trainable": st.sampled_from(["none", "all", 5]),
        "train.schedule": st.sampled_from(["constant", "plateau", "cosine", "steps"]),
        "train.phases": st.none()
        | st.lists(st.builds(lambda n: {"epochs": n}, st.integers(1, 9)), min_size=1, max_size=3),
        "train.seed": st.integers(0, 2**32 - 1),
        "data.classes": st.none() | st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=3),
        "data.augment.flip": st.booleans(),
    },
)


@given(SETTINGS)
def test_config_json_reads_back_as_the_same_config(given_settings: dict[str, Any]) -> None:
    once = TrainConfig.from_settings(given_settings)
    assert TrainConfig.from_settings(json.loads(once.to_json())) == once
    assert TrainConfig.from_settings(once.flat()) == once


@given(SETTINGS, st.randoms())
def test_neither_order_nor_nesting_changes_the_trial_id(given_settings: dict[str, Any], random: Any) -> None:
    items = list(given_settings.items())
    random.shuffle(items)
    straight = TrainConfig.from_settings(given_settings)
    assert same_trial(straight, TrainConfig.from_settings(dict(items)), TrainConfig.from_settings(nest(dict(items))))


@given(SETTINGS)
def test_unused_settings_change_no_trial_id(given_settings: dict[str, Any]) -> None:
    once = TrainConfig.from_settings(given_settings)
    defaults = setting_names()
    reset = {name: defaults[name] for name in once.unused()}
    assert same_trial(once, TrainConfig.from_settings({**once.flat(), **reset}))


def test_a_setting_on_the_command_line_is_read_as_in_a_grid() -> None:
    assert parse_setting("train.learning_rate=1e-3") == ("train.learning_rate", 0.001)
    assert parse_setting("model.head=[64, 32]") == ("model.head", [64, 32])
    assert parse_setting("model.weights=a=b.keras") == ("model.weights", "a=b.keras")
    assert parse_setting("model.weights=no") == ("model.weights", "no")


@pytest.mark.parametrize("text", ["model.dropout", "model.dropout=[1", "model.dropout=*a"])
def test_a_setting_on_the_command_line_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--set model\.dropout"):
        parse_setting(text)


# -- what names a trial ---------------------------------------------------------------------------


def test_a_trial_id_is_the_same_in_every_process() -> None:
    code = "from artclf.config import *; print(trial_id(TrainConfig.from_settings({'data.classes': ['é', 'b']}), 'd'))"
    project = Path(__file__).parents[2]
    ids = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C"},
            cwd=project,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert ids == {trial_id(config(data__classes=["é", "b"]), "d") + "\n"}


def test_trial_ids_are_eight_hex_digits_that_depend_on_the_data() -> None:
    name = trial_id(TrainConfig(), "digest")
    assert len(name) == 8
    assert set(name) <= set("0123456789abcdef")
    assert trial_id(TrainConfig(), "other") != name


@pytest.mark.parametrize("model", [*sorted(OWN_MODELS), "resnet50"])
def test_null_and_the_models_own_value_are_one_trial(model: str) -> None:
    assert same_trial(
        config(model__name=model), TrainConfig.from_settings({"model.name": model, **own_defaults(model)})
    )


def test_a_head_of_numbers_and_of_layers_is_one_trial() -> None:
    assert same_trial(config(model__head=[64]), config(model__head=[{"units": 64}]))
    assert not same_trial(config(model__head=[64]), config(model__head=[{"units": 64, "batch_norm": True}]))


def test_minus_zero_and_zero_are_one_trial() -> None:
    assert same_trial(config(model__dropout=-0.0), config(model__dropout=0), config(model__dropout=0.0))


def test_moving_a_file_of_weights_keeps_the_trial_and_changing_it_makes_another(tmp_path: Path) -> None:
    here, there = tmp_path / "a.keras", tmp_path / "b.keras"
    here.write_bytes(b"one")
    before = trial_id(config(model__weights=str(here)), "d")
    here.rename(there)
    assert trial_id(config(model__weights=str(there)), "d") == before
    there.write_bytes(b"another")
    assert trial_id(config(model__weights=str(there)), "d") != before


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.weights: expected none, imagenet or a file of weights"):
        trial_id(config(model__weights=str(tmp_path / "gone.keras")), "d")


# -- phases ---------------------------------------------------------------------------------------


def test_a_run_without_phases_is_one_phase_of_its_own_settings() -> None:
    made = config(train__epochs=7, train__learning_rate=0.01, train__schedule="cosine", model__trainable=3)
    assert made.phases() == (Phase(epochs=7, learning_rate=0.01, trainable=3, schedule="cosine"),)


def test_phases_take_what_they_leave_out_from_the_run() -> None:
    made = config(
        train__phases=[{"epochs": 2}, {"epochs": 3, "learning_rate": 0.1, "trainable": "all"}], model__trainable="none"
    )
    assert made.phases() == (
        Phase(epochs=2, learning_rate=0.001, trainable="none", schedule="constant"),
        Phase(epochs=3, learning_rate=0.1, trainable="all", schedule="constant"),
    )
    assert made.total_epochs() == 5


def test_one_phase_that_says_the_same_as_the_run_is_the_same_trial() -> None:
    assert same_trial(config(train__epochs=5), config(train__phases=[{"epochs": 5}]))


def test_a_rate_that_every_phase_replaces_is_unused_and_one_that_a_phase_needs_is_not() -> None:
    replaced = [{"epochs": 1, "learning_rate": 0.1}]
    assert same_trial(config(train__phases=replaced), config(train__phases=replaced, train__learning_rate=0.5))
    assert "train.learning_rate" in config(train__phases=replaced).unused()
    needed = [*replaced, {"epochs": 1}]
    assert not same_trial(config(train__phases=needed), config(train__phases=needed, train__learning_rate=0.5))
    assert "train.learning_rate" not in config(train__phases=needed).unused()


@pytest.mark.parametrize("unused", [{"model.trainable": "none"}, {"model.weights": "imagenet"}, {"model.alpha": 0.5}])
def test_networks_built_here_have_nothing_to_freeze_or_load(unused: dict[str, Any]) -> None:
    assert same_trial(config(model__name="cnn_small"), TrainConfig.from_settings({"model.name": "cnn_small", **unused}))


@settings(max_examples=50)
@given(SETTINGS)
def test_phases_are_complete_and_their_epochs_add_up(given_settings: dict[str, Any]) -> None:
    made = TrainConfig.from_settings(given_settings)
    assert all(None not in phase.model_dump().values() for phase in made.phases())
    assert made.total_epochs() == sum(phase.epochs for phase in made.phases())
