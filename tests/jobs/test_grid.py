"""The grid language: what each file means, and that no bad file gets past."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artclf.config import TrainConfig, setting_names, settings_digest, trial_id
from artclf.errors import ConfigError
from jobs.grid import (
    MAX_TRIALS,
    Budget,
    Expansion,
    Grid,
    Objective,
    Resources,
    check_dataset,
    check_uri,
    count,
    expand,
    load_grid,
)

HEAD = "study: s\ndataset: data/art\n"
SHIPPED = sorted((Path(__file__).parents[2] / "grids").glob("*.yaml"))


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load_text(text: str, head: str = HEAD) -> Grid:
        path = tmp_path / "x.yaml"
        path.write_text(head + text, encoding="utf-8")
        return load_grid(path)

    return load_text


@pytest.fixture
def expanded(load: Any) -> Any:
    return lambda text: expand(load(text), "digest")


@pytest.fixture
def faults(load: Any, tmp_path: Path) -> Any:
    def faults_of(text: str, head: str = HEAD) -> list[str]:
        with pytest.raises(ConfigError) as raised:
            load(text, head)
        return [line.removeprefix(f"{tmp_path / 'x.yaml'}:") for line in str(raised.value).splitlines()]

    return faults_of


def values(expansion: Expansion, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(trial.config.flat()[name] for name in names) for trial in expansion.trials]


# -- what a grid means ----------------------------------------------------------------------------


def test_a_grid_of_nothing_but_a_base_is_one_trial_whose_label_says_so(expanded: Any) -> None:
    expansion = expanded("base: {model.dropout: 0.3}\n")
    assert values(expansion, "model.dropout") == [(0.3,)]
    assert [(trial.label, trial.params) for trial in expansion.trials] == [("(nothing varies)", {})]
    assert expansion.varying == ()


def test_axes_multiply_and_the_last_one_moves_fastest(expanded: Any) -> None:
    expansion = expanded("axes: {model.dropout: [0.1, 0.2], train.seed: [0, 1, 2]}\n")
    assert values(expansion, "model.dropout", "train.seed") == list(itertools.product([0.1, 0.2], [0, 1, 2]))


def test_the_axes_of_a_zip_group_move_together_and_groups_multiply(expanded: Any) -> None:
    expansion = expanded(
        "zip:\n  - {data.image_size: [64, 128], data.crops: [16, 4]}\n  - {train.seed: [0, 1], model.l2: [null, 0.1]}\n"
    )
    assert values(expansion, "data.image_size", "data.crops", "train.seed", "model.l2") == [
        (64, 16, 0, None),
        (64, 16, 1, 0.1),
        (128, 4, 0, None),
        (128, 4, 1, 0.1),
    ]


def test_rows_are_further_trials_that_override_the_base_and_are_not_multiplied(expanded: Any) -> None:
    expansion = expanded(
        "base: {model.dropout: 0.5, train.seed: 7}\naxes: {train.batch_size: [8, 16]}\n"
        "rows:\n  - {model.dropout: 0.9}\n  - {train.seed: 1}\n"
    )
    assert values(expansion, "model.dropout", "train.seed", "train.batch_size") == [
        (0.5, 7, 8),
        (0.5, 7, 16),
        (0.9, 7, 32),
        (0.5, 1, 32),
    ]


def test_a_grid_of_rows_alone_does_not_add_its_base_as_a_trial(expanded: Any) -> None:
    expansion = expanded("base: {model.dropout: 0.5}\nrows:\n  - {train.seed: 1}\n  - {train.seed: 2}\n")
    assert values(expansion, "train.seed", "model.dropout") == [(1, 0.5), (2, 0.5)]


def test_when_multiplies_only_the_points_that_match(expanded: Any) -> None:
    expansion = expanded(
        "axes: {model.name: [cnn_small, cnn_wide]}\n"
        "when:\n  - if: {model.name: cnn_wide}\n    axes: {model.filters: [[64, 128], [32, 64]]}\n"
    )
    assert values(expansion, "model.name", "model.filters")[1:] == [("cnn_wide", [64, 128]), ("cnn_wide", [32, 64])]
    assert [trial.params for trial in expansion.trials] == [
        {"model.name": "cnn_small"},  # filters make no difference to it, so they are none of its parameters
        {"model.name": "cnn_wide", "model.filters": [64, 128]},
        {"model.name": "cnn_wide", "model.filters": [32, 64]},
    ]


def test_a_second_when_sees_what_the_first_one_set(expanded: Any) -> None:
    expansion = expanded(
        "when:\n  - if: {train.seed: 0}\n    axes: {model.name: [resnet50, vgg16]}\n"
        "  - if: {model.name: vgg16}\n    axes: {model.dropout: [0.1, 0.2]}\n"
    )
    assert values(expansion, "model.name", "model.dropout") == [("resnet50", None), ("vgg16", 0.1), ("vgg16", 0.2)]


def test_exclude_drops_points_that_have_all_of_its_settings_and_no_rows(expanded: Any) -> None:
    expansion = expanded(
        "axes: {model.dropout: [0.1, 0.2], train.seed: [0, 1]}\nrows:\n  - {model.dropout: 0.2, train.seed: 9}\n"
        "exclude:\n  - {model.dropout: 2e-1, train.seed: 1}\n  - {model.dropout: 0.2, train.seed: 9}\n"
    )
    assert values(expansion, "model.dropout", "train.seed") == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 9)]
    (note,) = expansion.notes
    assert note.endswith("x.yaml:8: exclude[1]: matches no point (rows are never excluded), so it drops nothing.")


def test_a_condition_counts_defaults(expanded: Any) -> None:
    expansion = expanded("axes: {train.seed: [0, 1]}\nexclude:\n  - {train.batch_size: 32, train.seed: 1}\n")
    assert values(expansion, "train.seed") == [(0,)]


def test_a_when_that_matches_nothing_is_noted(expanded: Any) -> None:
    expansion = expanded("when:\n  - if: {model.name: vgg19}\n    axes: {train.seed: [0, 1]}\n")
    assert len(expansion.trials) == 1
    assert "x.yaml:4: when[0].if: matches no point" in expansion.notes[0]


def test_groups_and_lists_work_as_values_of_an_axis(expanded: Any) -> None:
    expansion = expanded(
        "axes:\n  data.classes: [{top: 11}, {min_images: 50}, [Monet, Goya], null]\n"
        "  data.augment: [{flip: true}, {flip: false}]\n"
    )
    assert values(expansion, "data.classes", "data.augment.flip")[::2] == [
        ({"top": 11}, True),
        ({"min_images": 50}, True),
        (["Monet", "Goya"], True),
        (None, True),
    ]
    assert expansion.trials[0].label == "flip=true classes={top:11}"


def test_nested_and_dotted_settings_mean_the_same(expanded: Any) -> None:
    nested = expanded("base: {model: {name: vgg16}}\naxes: {model: {dropout: [0.1, 0.2]}}\n")
    dotted = expanded("base: {model.name: vgg16}\naxes: {model.dropout: [0.1, 0.2]}\n")
    assert nested == dotted


def test_equal_trials_are_merged_and_the_note_says_how_many_and_why(expanded: Any) -> None:
    expansion = expanded("axes: {model.name: [resnet50, mobilenet], model.alpha: [0.5, 0.75, 1.0]}\n")
    assert len(expansion.trials) == 4
    assert expansion.notes == (
        "2 trials were merged with an equal one: model.alpha of another value makes no difference to resnet50 here.",
    )


def test_a_row_that_repeats_a_point_is_merged_with_a_note(expanded: Any) -> None:
    expansion = expanded("axes: {train.seed: [0, 1]}\nrows:\n  - {train.seed: 1}\n")
    assert len(expansion.trials) == 2
    assert "1 trial was merged" in expansion.notes[0]
    assert "more than once" in expansion.notes[0]


def test_excluding_everything_stops(expanded: Any) -> None:
    with pytest.raises(ConfigError, match="0 trials"):
        expanded("axes: {train.seed: [0, 1]}\nexclude:\n  - {train.batch_size: 32}\n")


def test_growing_a_grid_keeps_the_names_of_its_trials(expanded: Any) -> None:
    small = expanded("axes: {model.dropout: [0.1, 0.2]}\n")
    large = expanded("axes: {train.seed: [3, 0], model.dropout: [0.05, 0.1, 0.2]}\n")
    assert {trial.trial_id for trial in small.trials} < {trial.trial_id for trial in large.trials}


def test_other_pictures_make_other_trials(load: Any) -> None:
    grid = load("axes: {train.seed: [0, 1]}\n")
    mine, others = ({trial.trial_id for trial in expand(grid, digest).trials} for digest in ("a", "b"))
    assert not mine & others


def test_the_trial_id_is_that_of_the_config(expanded: Any) -> None:
    for trial in expanded("axes: {train.seed: [0, 1]}\n").trials:
        assert trial.trial_id == trial_id(trial.config, "digest")


def test_missing_weights_stop_the_expansion(expanded: Any) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml: model\.weights: .*gone\.keras"):
        expanded("base: {model.weights: gone.keras}\n")


# -- labels ---------------------------------------------------------------------------------------


def test_labels_use_the_shortest_names_that_tell_settings_apart(expanded: Any) -> None:
    expansion = expanded(
        "axes: {model.name: [vgg16, vgg19], train.batch_size: [8, 16], evaluate.batch_size: [32, 64],"
        " model.l2: [null, 1e-4]}\n"
    )
    assert expansion.trials[1].label == "model=vgg16 l2=0.0001 train.batch_size=8 evaluate.batch_size=32"


def test_labels_that_shortening_made_alike_end_with_the_trial_id(expanded: Any) -> None:
    long = [f"painter {'x' * 60} {n} {'y' * 60}" for n in range(2)]
    expansion = expanded(f"axes:\n  data.classes: {json.dumps([[name, 'Goya'] for name in long])}\n")
    labels = [trial.label for trial in expansion.trials]
    assert len(set(labels)) == 2
    assert [label[-8:] for label in labels] == [trial.trial_id for trial in expansion.trials]


AXIS_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "model.name": st.sampled_from(["cnn_tiny", "cnn_wide", "vgg16", "mobilenet"]),
    "model.alpha": st.sampled_from([0.5, 1.0]),
    "model.trainable": st.sampled_from(["none", "all", 3]),
    "model.dropout": st.sampled_from([None, 0, 0.0, 0.5]),
    "model.head": st.sampled_from([None, [], [64], [{"units": 64}], [{"units": 64, "batch_norm": True}]]),
    "train.seed": st.integers(0, 2),
    "train.learning_rate": st.sampled_from([0.001, 1e-3, 0.01]),
    "train.schedule": st.sampled_from(["constant", "plateau", "steps"]),
    "train.steps.every": st.integers(1, 2),
    "train.phases": st.sampled_from([None, [{"epochs": 20}], [{"epochs": 5, "learning_rate": 0.1}, {"epochs": 2}]]),
    "data.classes": st.sampled_from(
        [None, {"top": 2}, ["a\nb", "$(id)"], ["x" * 200 + "1", "y"], ["x" * 200 + "2", "y"]]
    ),
}
AXES = st.dictionaries(st.sampled_from(sorted(AXIS_VALUES)), st.just(None), max_size=4).flatmap(
    lambda names: st.fixed_dictionaries({name: st.lists(AXIS_VALUES[name], min_size=1, max_size=3) for name in names})
)


def as_grid(folder: Path, **parts: Any) -> Grid:
    path = folder / "x.yaml"
    path.write_text(json.dumps({"study": "s", "dataset": "sample:", **{k: v for k, v in parts.items() if v}}))
    return load_grid(path)


@given(axes=AXES, rows=st.lists(st.dictionaries(st.just("train.seed"), st.integers(0, 9)), max_size=3))
@settings(max_examples=60, deadline=None)
def test_trials_of_any_grid_have_distinct_ids_and_labels_and_lose_no_point(
    axes: Any, rows: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    grid = as_grid(tmp_path_factory.mktemp("grid"), axes=axes, rows=rows)
    trials = expand(grid, "d").trials
    assert len({trial.trial_id for trial in trials}) == len({trial.label for trial in trials}) == len(trials)
    assert len(trials) <= count(grid)
    points = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())] if axes else []
    wanted = {trial_id(TrainConfig.from_settings(point), "d") for point in points + rows or [{}]}
    assert {trial.trial_id for trial in trials} == wanted


@given(axes=AXES, data=st.data())
@settings(max_examples=40, deadline=None)
def test_order_of_axes_and_values_changes_no_trial_id(
    axes: dict[str, list[Any]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shuffled = {name: data.draw(st.permutations(axes[name])) for name in data.draw(st.permutations(list(axes)))}
    folder = tmp_path_factory.mktemp("grid")
    one, other = (expand(as_grid(folder, axes=each), "d") for each in (axes, shuffled))
    assert {t.trial_id for t in one.trials} == {t.trial_id for t in other.trials}
    assert one.varying == other.varying


# -- bad input: BAD_INPUTS.md, "Grids (YAML) and config" ------------------------------------------

BAD = [
    (
        "G01",
        "axes:\n  train.seed: [0]\n  train.seed: [1]\n",
        "5: 'train.seed' stands here for the second time, the first",
    ),
    (
        "G01",
        "base: {model.dropout: 0.1, model: {dropout: 0.2}}\n",
        "base.model.dropout: sets model.dropout for the second",
    ),
    ("G03", "base: {train.batch_size: no}\n", "base.train.batch_size: expected a whole number.*received 'no', a text"),
    ("G03", "base: {data.augment.flip: on}\n", "data.augment.flip: expected true or false, received 'on'"),
    (
        "G05",
        "axes: {model.dropout: [.inf]}\n",
        r"axes.model.dropout\[0\]: expected a number from 0 to 1 .*received inf",
    ),
    ("G05", "base: {train.learning_rate: .nan}\n", "base.train.learning_rate: expected a number.*received nan"),
    ("G05", "base: {model.l2: -0.0}\n", "base.model.l2: expected a number from 0 to 10"),
    ("G06", "base: {model.name: !!python/object/apply:os.system [id]}\n", "3: tags .* are not accepted"),
    ("G06", "base: {model.name: !mine x}\n", "3: tags .* are not accepted"),
    ("G07", "base: &a {train.seed: 1}\nrows: [*a, *a]\n", "3: anchors .* are not accepted"),
    ("G09", "base: &a\n  model: *a\n", "anchors .* are not accepted"),
    ("G10", f"base: {'[' * 500}{']' * 500}\n", "levels of nesting"),
    ("G11", f"# {'x' * 10_000_000}\n", "expected at most 1,000,000 bytes"),
    ("G14", "base: {model.droput: 0.5}\n", "base.model.droput: no such setting. Did you mean model.dropout?"),
    ("G14", "base: {modle: {dropout: 0.5}}\n", "base.modle.dropout: no such setting. Did you mean model.dropout?"),
    (
        "G14",
        "axes: {train.learning_rte: [1]}\n",
        "axes.train.learning_rte: no such setting. Did you mean train.learning_rate",
    ),
    ("G14", "axis: {train.seed: [1]}\n", "axis: no such part of a grid. Did you mean axes?"),
    ("G14", "resources: {max_hour: 3}\n", "resources.max_hour: no such field. Did you mean max_hours?"),
    ("G14", "objective: {metrc: val_loss}\n", "objective.metrc: no such field. Did you mean metric?"),
    ("G14", "budget: {max_us: 3}\n", "budget.max_us: no such field. Did you mean max_usd?"),
    (
        "G14",
        "when:\n  - {iff: {train.seed: 0}, axes: {train.seed: [1]}}\n",
        r"when\[0\].iff: no such field. Did you mean if",
    ),
    (
        "G15",
        "axes: {model.dropout: [0.5, high]}\n",
        r"model.dropout\[1\]: expected a number from 0 to 1 \(1 excluded\)",
    ),
    ("G15", "axes: {model.dropout: 0.5}\n", "axes.model.dropout: expected a list of values, received 0.5"),
    ("G15", "axes: {model.head: [128, 64]}\n", r"axes.model.head\[0\]: expected a list"),
    ("G15", "base: {train.batch_size: Null}\n", "base.train.batch_size: expected a whole number.*received null"),
    ("G15", "base: [train.seed]\n", "base: expected names with values, received a list"),
    ("G15", "base:\n", "base: expected names with values, received null"),
    ("G15", "rows: {train.seed: 1}\n", "rows: expected a list"),
    ("G15", "rows:\n  - 3\n", r"rows\[0\]: expected names with values, received 3"),
    ("G15", "base: {train.phases: [{epochs: 3, lr: 1}]}\n", r"base.train.phases\[0\].lr: no such setting"),
    ("G15", "base: {data: 3}\n", r"base.data: expected settings below it \(view, image_size, "),
    ("G16", "axes: {train.learning_rate: []}\n", r"expected at least one value, received an empty list \(0 trials\)"),
    ("G16", "axes: {}\n", "axes: expected at least one setting"),
    ("G16", "zip: [{}]\n", r"zip\[0\]: expected at least one setting"),
    ("G16", "exclude: [{}]\n", r"exclude\[0\]: expected at least one setting to compare"),
    (
        "G16",
        "zip:\n  - {train.seed: [0, 1], model.l2: [0.1]}\n",
        r"zip\[0\]: expected lists of equal length.*has 2.*has 1",
    ),
    ("G16", "axes: {train.seed: [0]}\nzip: [{train.seed: [1]}]\n", r"zip\[0\]: train.seed varies in axes already"),
    ("G16", "zip: [{train.seed: [0]}, {train.seed: [1]}]\n", r"zip\[1\]: train.seed varies in zip\[0\] already"),
    ("G16", "axes: {data.augment: [{flip: true}], data.augment.flip: [true]}\n", "for the second time"),
    ("G16", "when:\n  - {if: {train.seed: 0}}\n", r"when\[0\]: expected if: and axes:, received no axes"),
    ("G18", f"axes: {{train.seed: {list(range(501))}}}\n", "expected at most 500 values"),
    ("G18", f"rows: {[{'train.seed': n} for n in range(501)]}\n", "rows: expected at most 500 members"),
    (
        "G19",
        f"base: {{{', '.join(f'a{n}: 1' for n in range(101))}}}\n",
        r"at most 100 settings \(SageMaker's limit\), received 101",
    ),
    ("G19", f"base: {{model.weights: {'x' * 257}}}\n", r"at most 256 characters \(SageMaker's limit\), received 257"),
    (
        "G19",
        f"base: {{data.classes: [a, {'x' * 2501}]}}\n",
        r"data.classes\[1\]: .*SageMaker's limit\), received 2,501",
    ),
    ("G19", f"base: {{? {'k' * 257} : 1}}\n", r"name of at most 256 characters \(SageMaker's limit\), received 257"),
    ("G20", 'base: {model.weights: "\\ud800"}\n', "expected text that UTF-8 can hold"),
    ("G24", "resources: {max_hours: 5, max_wait_hours: 4}\n", r"max_wait_hours: expected at least max_hours \(5\)"),
    ("G24", "resources: {max_hours: 673}\n", "resources.max_hours: expected hours, more than 0 and at most 672"),
    ("G24", "resources: {max_wait_hours: 673}\n", "resources.max_wait_hours: expected hours"),
    ("G24", "resources: {max_hours: 0}\n", "resources.max_hours: expected hours"),
    ("G24", "resources: {max_hours: -1}\n", "resources.max_hours: expected hours"),
    ("G24", "resources: {max_hours: yes}\n", "resources.max_hours: expected hours.*received 'yes'"),
    ("G24", "resources: {max_parallel: 0}\n", "resources.max_parallel: expected a whole number from 1 to 500"),
    ("G24", "resources: {spot: no}\n", "resources.spot: expected true or false, received 'no'"),
    ("G25", "resources: {instance: ml.g4dn.xlarge}\n", "without ml."),
    ("G25", "resources: {instance: m5.large}\n", "resources.instance: expected one of g4dn.xlarge,"),
    ("G25", "resources: {instance: g4dn.3xlarge}\n", "resources.instance: expected one of"),
    ("G26", "budget: {max_usd: 0}\n", "budget.max_usd: expected US dollars, more than 0"),
    ("G26", "budget: {max_usd: .inf}\n", "budget.max_usd: expected US dollars"),
    ("G27", "resources: {tags: {team: 'a,b'}}\n", "resources.tags.team: expected at most 256 letters"),
    ("G27", "resources: {tags: {'a*': b}}\n", r"resources.tags.a\*: expected a key"),
    ("G27", "resources: {tags: {'aws:team': b}}\n", "does not begin with aws:"),
    ("G27", "resources: {tags: {AWS:team: b}}\n", "does not begin with aws:"),
    ("G27", "resources: {tags: {team: 7}}\n", "resources.tags.team: expected a text, received 7"),
    ("G27", f"resources: {{tags: {{{', '.join(f't{n}: x' for n in range(51))}}}}}\n", "resources.tags: .*received 51"),
    (
        "objective",
        "objective: {metric: test_accuracy}\n",
        "metric: expected one of val_accuracy.*chosen on the test split",
    ),
    ("objective", "objective: {metric: val_loss, mode: max}\n", "objective.mode: expected min for val_loss"),
    ("objective", "objective: {mode: best}\n", "objective.mode: expected max or min"),
]


@pytest.mark.parametrize(("case", "text", "message"), BAD, ids=[f"{c}-{n}" for n, (c, _, _) in enumerate(BAD)])
def test_a_bad_grid_stops_with_a_message_that_says_where(case: str, text: str, message: str, load: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        load(text)


@pytest.mark.parametrize("text", ["", "# only\n# comments\n", "- a\n- list\n", "3\n", "{}\n---\nstudy: b\n"])
def test_g12_what_is_not_one_mapping_stops(text: str, load: Any) -> None:
    with pytest.raises(ConfigError):
        load(text, head="")


def test_g02_numbers_with_an_exponent_are_numbers(expanded: Any) -> None:
    expansion = expanded("axes: {train.learning_rate: [1e-3, 1.0e-3, 0.001]}\n")
    assert values(expansion, "train.learning_rate") == [(0.001,)]


def test_g05_minus_zero_is_zero(expanded: Any) -> None:
    assert len(expanded("axes: {model.dropout: [0, 0.0, -0.0]}\n").trials) == 1


def test_g18_ten_million_points_stop_before_any_is_made(load: Any) -> None:
    ten = list(range(1, 11))
    axes = {
        "train.seed": ten,
        "train.batch_size": ten,
        "train.epochs": ten,
        "data.crops": ten,
        "model.trainable": ten,
        "train.steps.every": ten,
        "train.plateau.patience": ten,
    }
    grid = load(f"axes: {json.dumps(axes)}\nresources: {{max_hours: 2}}\n")
    assert count(grid) == 10_000_000
    with pytest.raises(ConfigError, match=r"at most 500 trials, received 10,000,000 \(up to 20,000,000 instance-hours"):
        expand(grid, "d")


def test_g18_a_when_cannot_pass_the_limit_either(load: Any) -> None:
    axes = "{train.seed: [1, 2, 3, 4, 5, 6, 7, 8, 9], train.epochs: [1, 2, 3, 4, 5, 6, 7, 8, 9]}"
    grid = load(
        f"axes: {{train.batch_size: [1, 2, 3, 4, 5, 6, 7]}}\nwhen:\n  - {{if: {{data.crops: 1}}, axes: {axes}}}\n"
    )
    with pytest.raises(ConfigError, match="received 567"):
        expand(grid, "d")


def test_exactly_500_trials_are_accepted(expanded: Any) -> None:
    assert len(expanded(f"axes: {{train.seed: {list(range(MAX_TRIALS))}}}\n").trials) == MAX_TRIALS


ODD = [
    "it's",
    'say "hi"',
    "two\nlines",
    "$(id)",
    ";rm -rf /",
    "--flag",
    "Дюрер 素描 🎨",
    "a\tb",
    "\\n",
    "%s {x}",
    "no",
    "1e-3",
]


def test_g20_odd_texts_reach_config_json_byte_for_byte(expanded: Any) -> None:
    (trial,) = expanded(f"base: {{data.classes: {json.dumps(ODD)}}}\n").trials
    assert json.loads(trial.config.to_json())["data"]["classes"] == ODD


@given(st.lists(st.text(min_size=1, max_size=256), min_size=2, max_size=5))
@settings(max_examples=60, deadline=None)
def test_g20_any_text_reaches_config_json(names: list[str]) -> None:
    config = TrainConfig.from_settings({"data.classes": names})
    assert json.loads(config.to_json().encode())["data"]["classes"] == names


def test_g22_a_hundred_thousand_points_have_distinct_names_and_short_twins_are_refused(load: Any) -> None:
    canonical = TrainConfig().canonical()
    short: dict[str, int] = {}
    full: set[str] = set()
    twins: tuple[int, int] | None = None
    seed = 0
    while twins is None or seed < 100_000:
        digest = settings_digest({**canonical, "train.seed": seed}, "d")
        full.add(digest)
        first = short.setdefault(digest[:8], seed)
        twins = twins or ((first, seed) if first != seed else None)
        seed += 1
    assert len(full) == seed
    with pytest.raises(ConfigError, match="two different trials share the name"):  # 8 digits can meet by chance
        expand(load(f"axes: {{train.seed: [{twins[0]}, {twins[1]}]}}\n"), "d")


def test_g23_reordering_and_comments_change_no_trial_id(expanded: Any) -> None:
    one = expanded(
        "base: {model.name: vgg16, train.epochs: 3}\naxes: {model.dropout: [0.1, 0.2], train.seed: [0, 1]}\n"
    )
    other = expanded(
        "axes:  # turned round\n  train: {seed: [1, 0]}\n  model.dropout: [2e-1, 0.10]\n"
        "base: {train: {epochs: 3}, model: {name: vgg16}}\n"
    )
    assert {t.trial_id: t.label for t in one.trials} == {t.trial_id: t.label for t in other.trials}


URIS = [
    ("data/artists", "data/artists"),
    ("~/kunst und mehr", "~/kunst und mehr"),
    ("file:///srv/art", "file:///srv/art"),
    ("s3://bucket", "s3://bucket"),
    ("s3://bucket/", "s3://bucket"),
    ("s3://bucket/a/b", "s3://bucket/a/b"),
    ("s3://bucket/a/b/", "s3://bucket/a/b"),
    ("S3://my.bucket-1/a//", "s3://my.bucket-1/a"),
    ("s3://", None),
    ("s3:///a", None),
    ("s3://Bucket/a", None),
    ("s3://ab/a", None),
    ("s3://a..b/a", None),
    ("s3://-abc/a", None),
    ("s3://192.168.0.1/a", None),
    ("s3://bucket/a//b", None),
    ("s3://bucket/../b", None),
    ("https://bucket.s3.amazonaws.com/a", None),
    ("gs://bucket/a", None),
    ("file://host/a", None),
    ("", None),
    ("  ", None),
    ("a\nb", None),
    ("s3://bucket/" + "x" * 1024, None),
]


@pytest.mark.parametrize(("text", "expected"), URIS, ids=[repr(text)[:40] for text, _ in URIS])
def test_g28_a_uri_is_normalised_or_refused(text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(ConfigError):
            check_uri(text)
    else:
        assert check_uri(text) == check_uri(check_uri(text)) == expected


@pytest.mark.parametrize(
    "text", ["sample:", "kaggle:ikarus777/best-artworks-of-all-time", "pictures.zip", "s3://bucket/a"]
)
def test_the_forms_of_a_dataset_are_accepted(text: str) -> None:
    assert check_dataset(text) == text


@pytest.mark.parametrize("text", ["sample:12", "kaggle:", "kaggle:owner", "kaggle:a/b/c", "http://x/y.zip"])
def test_misshapen_datasets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        check_dataset(text)


@pytest.mark.parametrize("study", ["", "Artists", "1st", "a_b", "a" * 41, "-a", "3", "null", "[a]"])
def test_a_study_name_that_cannot_name_jobs_is_refused(study: str, faults: Any) -> None:
    (fault,) = faults("", head=f"study: {study}\ndataset: d\n")
    assert fault.startswith("1: study: expected 1 to 40 of a-z, 0-9 and -")
    assert "63" in fault


def test_all_faults_are_told_at_once_in_the_order_of_the_file(faults: Any) -> None:
    text = (
        "dataset: d\naxes:\n  train.learning_rte: [1]\n  model.dropout: [0.5, high, 2]\n"
        "resources: {instance: p3.2xlarge, max_hours: 0}\nbase: {train.seed: -1}\n"
    )
    found = faults(text, head="")
    assert [fault.split(" ")[0:2] for fault in found] == [
        ["1:", "study:"],
        ["3:", "axes.train.learning_rte:"],
        ["4:", "axes.model.dropout[1]:"],
        ["4:", "axes.model.dropout[2]:"],
        ["5:", "resources.instance:"],
        ["5:", "resources.max_hours:"],
        ["6:", "base.train.seed:"],
    ]
    assert found[2] == (
        "4: axes.model.dropout[1]: expected a number from 0 to 1 (1 excluded) or null, received 'high', a text."
    )


def test_of_very_many_faults_the_first_are_told_and_the_rest_counted(faults: Any) -> None:
    found = faults(f"base: {{train.phases: {[{'epochs': 0}] * 150}}}\n")
    assert len(found) == 101
    assert found[-1] == " and 50 more faults."


def test_labels_name_the_values_of_a_list_of_settings_in_short(expanded: Any) -> None:
    expansion = expanded(
        "axes:\n  train.phases:\n    - [{epochs: 10, trainable: all}, {epochs: 50, schedule: plateau}]\n    - null\n"
    )
    assert [trial.label for trial in expansion.trials] == ["phases=[{10,all},{50,plateau}]", "phases=null"]


def test_a_fault_deep_in_a_value_has_its_own_line(faults: Any) -> None:
    (fault,) = faults("base:\n  train.phases:\n    - epochs: 3\n    - epochs: 3\n      schedule: slow\n")
    assert fault.startswith("7: base.train.phases[1].schedule: expected one of constant, ")


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_stops(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a grid file"):
        load_grid(tmp_path / name)


def test_bytes_that_are_not_utf8_stop(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"study: caf\xe9\n")
    with pytest.raises(ConfigError, match="expected UTF-8 text, received byte 0xe9"):
        load_grid(tmp_path / "x.yaml")


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(sorted(setting_names())),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(["if", "axes", *setting_names()]), inner, max_size=3)
    ),
    max_leaves=8,
)
PARTS = st.dictionaries(
    st.sampled_from(
        ["base", "axes", "zip", "rows", "exclude", "when", "objective", "resources", "budget", "study", "x"]
    ),
    JUNK,
    max_size=4,
)


@given(parts=PARTS)
@settings(max_examples=300, deadline=None)
def test_any_junk_is_judged_and_never_crashes(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.yaml"
    path.write_text(json.dumps({"study": "s", "dataset": "d", **parts}))
    try:
        expansion = expand(load_grid(path), "d")
    except ConfigError as error:
        assert str(path) in str(error)
    else:
        assert expansion.trials


# -- the other parts, and the grids that come along -----------------------------------------------


def test_what_a_grid_leaves_out_has_its_defaults(load: Any) -> None:
    grid = load("")
    assert (grid.objective, grid.resources, grid.budget) == (Objective(), Resources(), Budget(None))


def test_objective_resources_and_budget_are_read(load: Any) -> None:
    grid = load(
        "objective: {metric: val_loss}\nbudget: {max_usd: 20}\n"
        "resources: {instance: g4dn.2xlarge, spot: false, max_hours: 6, max_wait_hours: 6.5, max_parallel: 4,"
        " tags: {team: Kunst und Wissen, cost-centre: '42'}}\n"
    )
    assert grid.objective == Objective("val_loss", "min")
    assert grid.budget == Budget(20)
    tags = {"team": "Kunst und Wissen", "cost-centre": "42"}
    assert grid.resources == Resources("g4dn.2xlarge", False, 6, 6.5, 4, tags)


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_shipped_grid_expands_without_notes_and_says_what_to_expect(path: Path) -> None:
    expansion = expand(load_grid(path), "digest")
    assert len(expansion.trials) >= 4
    assert expansion.notes == ()
    head = list(itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines()))
    assert 3 <= len(head) <= 6


def test_all_grids_that_the_product_names_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} >= {"demo", "artists", "artists_w251", "artists11", "art_types", "cnn_wide"}


def test_artists_w251_is_the_ten_rows_of_the_table() -> None:
    grid = load_grid(next(path for path in SHIPPED if path.stem == "artists_w251"))
    names = ("data.image_size", "data.crops", "model.name", "data.view", "train.epochs", "model.dropout", "model.l2")
    assert values(expand(grid, "d"), *names) == [
        (64, 16, "mobilenet", "crop", 100, 0.7, None),
        (64, 16, "mobilenet", "crop", 100, 0.7, 0.001),
        (64, 16, "mobilenet", "crop", 100, 0.9, 0.0001),
        (64, 16, "resnet50", "crop", 100, 0.9, 0.0001),
        (128, 4, "mobilenet", "crop", 100, 0.7, 0.0001),
        (128, 4, "resnet50", "crop", 100, 0.7, 0.0001),
        (256, 1, "mobilenet", "crop", 100, 0.7, 0.0001),
        (256, 1, "mobilenet", "resize", 100, 0.7, 0.0001),
        (256, 1, "resnet50", "crop", 100, 0.9, 0.01),
        (256, 1, "resnet50", "resize", 100, 0.9, 0.01),
    ]
