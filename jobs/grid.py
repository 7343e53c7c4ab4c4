"""Grid files: reading, checking and expanding them into trials.

A grid spans points and lists rows:

    points = base ⊕ (product of the axes) × (each zip group, its axes tied)
             each point that matches a ``when`` is multiplied by that one's axes
             a point that matches an ``exclude`` is dropped
    rows   = base ⊕ row: explicit further trials, neither multiplied nor excluded

A grid with rows and nothing that spans points is its rows alone. Trials that compute the same are
merged. All is pure but reading the file and hashing a file of weights; what a setting may be is
known by artclf.config alone.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from artclf import strict_yaml
from artclf.config import (
    TRIAL_ID_DIGITS,
    TrainConfig,
    check_settings,
    dotted,
    flatten,
    is_group,
    setting_names,
    settings_digest,
    show,
)
from artclf.errors import ConfigError, nearest

MAX_TRIALS = 500
MAX_SETTINGS = 100
"""Most settings in one mapping: SageMaker takes 100 hyperparameters (API reference, CreateTrainingJob)."""
MAX_NAME = MAX_VALUE = 256
"""Longest name and text of a setting, in characters; SageMaker's limits for a hyperparameter (same page)."""
MAX_HOURS = 28 * 24
"""Longest time limit: SageMaker's MaxRuntimeInSeconds ends at 28 days (API reference, StoppingCondition)."""
MAX_TAGS = 40
"""Tags of the user's own; AWS allows 50 on a resource (API reference, CreateTrainingJob), the rest is for artclf's."""
MAX_TOLD = 100
"""Most faults told of one file; who has more sees the pattern."""
G4DN_VCPUS = {
    "g4dn.xlarge": 4,
    "g4dn.2xlarge": 8,
    "g4dn.4xlarge": 16,
    "g4dn.8xlarge": 32,
    "g4dn.12xlarge": 48,
    "g4dn.16xlarge": 64,
    "g4dn.metal": 96,
}
"""Known instances and their vCPUs, the unit of EC2's quotas (EC2 instance types, accelerated computing, G4dn)."""
METRICS: dict[str, Literal["max", "min"]] = {
    "val_accuracy": "max",
    "val_macro_f1": "max",
    "val_weighted_f1": "max",
    "val_top5_accuracy": "max",
    "val_loss": "min",
}
"""What a winner can be chosen by, and which way it is better."""

NOTHING_VARIES = "(nothing varies)"
"""The label of a grid's only trial."""

_STUDY = re.compile(r"[a-z][a-z0-9-]{0,39}")
_KAGGLE = re.compile(r"kaggle:[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_UNFIT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9-]|\.(?!\.)){1,61}[a-z0-9]")
_NAMES = frozenset(setting_names())
_SECTIONS = (
    "study",
    "dataset",
    "base",
    "axes",
    "zip",
    "rows",
    "exclude",
    "when",
    "objective",
    "resources",
    "budget",
)

Settings = dict[str, Any]
"""{dotted name: JSON value}."""
Axes = dict[str, tuple[Any, ...]]
"""{dotted name of a setting or a group of settings: its values}."""


@dataclass(frozen=True)
class Objective:
    """What the winner is chosen by; always measured on the validation split."""

    metric: str = "val_accuracy"
    mode: Literal["max", "min"] = "max"


@dataclass(frozen=True)
class Resources:
    """The machine of one job, and how many jobs at a time."""

    instance: str = "g4dn.xlarge"
    spot: bool = True
    max_hours: float = 24
    max_wait_hours: float | None = None
    max_parallel: int = 1
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """The most that a study may cost; None is no limit."""

    max_usd: float | None = None


@dataclass(frozen=True)
class Condition:
    """Settings that a point must all have, as config.json would show them, and where they stand."""

    settings: Settings
    where: str

    def matches(self, point: Settings) -> bool:
        """Says whether a point has all of the settings."""
        return all(point[name] == value for name, value in self.settings.items())


@dataclass(frozen=True)
class When:
    """Axes for some of the points only."""

    condition: Condition
    axes: Axes


@dataclass(frozen=True)
class Grid:
    """A grid file and nothing besides."""

    path: Path
    study: str
    dataset: str
    base: Settings
    axes: Axes
    zips: tuple[Axes, ...]
    rows: tuple[Settings, ...]
    exclude: tuple[Condition, ...]
    when: tuple[When, ...]
    objective: Objective
    resources: Resources
    budget: Budget


@dataclass(frozen=True)
class Trial:
    """One point of a grid.

    Attributes:
        trial_id: 8 hex digits, by content (artclf.config.trial_id).
        label: ``params`` as a short text, different for each trial of the grid.
        params: what varies over the grid and has an effect in this trial, by dotted name.
        config: every setting.
    """

    trial_id: str
    label: str
    params: dict[str, Any]
    config: TrainConfig


@dataclass(frozen=True)
class Expansion:
    """The trials of a grid, what a person should know about them, and the settings that vary."""

    trials: tuple[Trial, ...]
    notes: tuple[str, ...]
    varying: tuple[str, ...]


# -- expanding -----------------------------------------------------------------------------------


def count(grid: Grid) -> int:
    """Returns how many points the axes and zips span, plus the rows; costs nothing.

    ``when`` can only add to it; ``exclude`` and merging are yet to come.
    """
    spans = bool(grid.axes or grid.zips or grid.when or not grid.rows)
    points = math.prod(map(len, grid.axes.values())) * math.prod(_length(group) for group in grid.zips)
    return points * spans + len(grid.rows)


def expand(grid: Grid, data_digest: str) -> Expansion:
    """Returns the grid's trials in the order of the file, the last axis moving fastest.

    Args:
        grid: from load_grid.
        data_digest: the data set's name by content; part of every trial_id.

    Raises:
        ConfigError: for more than 500 trials (told before any is made), for none, or if a file
            of weights is not there.
    """
    _refuse_many(grid, count(grid))
    notes: list[str] = []
    points = _spanned(grid)
    for when in grid.when:
        points = _multiplied(grid, points, when, notes)
    points = _kept(grid, points, notes)
    points += [_point(grid, grid.base, row) for row in grid.rows]
    if not points:
        raise ConfigError(f"{grid.path}: every point is excluded, which leaves 0 trials. Loosen an exclude.")
    configs = [TrainConfig.from_settings(point) for point in points]
    unique = _merged(grid, configs, data_digest, notes)
    used = {trial_id: _used(config) for trial_id, config in unique.items()}
    varying = tuple(name for name in setting_names() if _varies(name, used.values()))
    params = {trial_id: {name: own[name] for name in varying if name in own} for trial_id, own in used.items()}
    labels = _labels(params, varying)
    trials = tuple(Trial(name, labels[name], params[name], config) for name, config in unique.items())
    return Expansion(trials, tuple(notes), varying)


def _refuse_many(grid: Grid, trials: int) -> None:
    if trials > MAX_TRIALS:
        hours = trials * grid.resources.max_hours
        raise ConfigError(
            f"{grid.path}: expected at most {MAX_TRIALS} trials, received {trials:,} (up to {hours:,.0f} "
            f"instance-hours at max_hours {grid.resources.max_hours:g}). Shorten axes, tie some of them in zip, "
            "or split the grid into several studies."
        )


def _length(group: Axes) -> int:
    return len(next(iter(group.values())))


def _spanned(grid: Grid) -> list[Settings]:
    """Returns base ⊕ (product of the axes) × (zip groups)."""
    if grid.rows and not (grid.axes or grid.zips or grid.when):
        return []
    groups = [
        [dict(zip(group, values, strict=True)) for values in zip(*group.values(), strict=True)] for group in grid.zips
    ]
    return [_point(grid, grid.base, *steps) for steps in itertools.product(*_factors(grid.axes), *groups)]


def _factors(axes: Axes) -> list[list[Settings]]:
    return [[{name: value} for value in values] for name, values in axes.items()]


def _point(grid: Grid, *parts: Settings) -> Settings:
    """Returns the settings of a config.json, defaults too, in which a later part overrides an earlier one."""
    return TrainConfig.from_settings(_joined(parts), where=str(grid.path)).flat()


def _joined(parts: Iterable[Settings]) -> Settings:
    joined: Settings = {}
    for part in parts:
        joined |= flatten(part)
    return joined


def _multiplied(grid: Grid, points: list[Settings], when: When, notes: list[str]) -> list[Settings]:
    """Returns the points, each that matches multiplied by the axes of a ``when``."""
    matching = [when.condition.matches(point) for point in points]
    if not any(matching):
        notes.append(f"{when.condition.where}: matches no point, so its axes add nothing.")
    factor = math.prod(map(len, when.axes.values()))
    _refuse_many(grid, len(points) + sum(matching) * (factor - 1) + len(grid.rows))
    multiplied: list[Settings] = []
    for point, matches in zip(points, matching, strict=True):
        steps = itertools.product(*_factors(when.axes))
        multiplied += [_point(grid, point, *step) for step in steps] if matches else [point]
    return multiplied


def _kept(grid: Grid, points: list[Settings], notes: list[str]) -> list[Settings]:
    """Returns the points that no ``exclude`` matches."""
    dropped: set[int] = set()
    for condition in grid.exclude:
        matched = {n for n, point in enumerate(points) if condition.matches(point)}
        dropped |= matched
        if not matched:
            rows = " (rows are never excluded)" if grid.rows else ""
            notes.append(f"{condition.where}: matches no point{rows}, so it drops nothing.")
    return [point for n, point in enumerate(points) if n not in dropped]


def _merged(grid: Grid, configs: list[TrainConfig], data_digest: str, notes: list[str]) -> dict[str, TrainConfig]:
    """Returns {trial_id: the first of the configs that compute the same}, and notes what was merged."""
    unique: dict[str, TrainConfig] = {}
    digests: dict[str, str] = {}
    twins: dict[tuple[str, ...], list[TrainConfig]] = defaultdict(list)
    for config in configs:
        try:
            digest = settings_digest(config.canonical(), data_digest)
        except ConfigError as error:
            raise ConfigError(f"{grid.path}: {error}") from error
        name = digest[:TRIAL_ID_DIGITS]
        if digests.setdefault(name, digest) != digest:
            # 8 digits: by chance about once in 34,000 grids of 500 trials
            raise ConfigError(f"{grid.path}: two different trials share the name {name} by chance. Change one seed.")
        first = unique.setdefault(name, config)
        if first is not config:
            mine, others = config.flat(), first.flat()
            twins[tuple(setting for setting in mine if mine[setting] != others[setting])].append(config)
    notes.extend(_merging(settings, merged) for settings, merged in twins.items())
    return unique


def _merging(settings: tuple[str, ...], merged: list[TrainConfig]) -> str:
    many = "1 trial was" if len(merged) == 1 else f"{len(merged)} trials were"
    if not settings:
        return f"{many} merged with an equal one: the same settings stand in the grid more than once."
    models = sorted({config.model.name for config in merged})
    return (
        f"{many} merged with an equal one: {', '.join(settings)} of another value "
        f"{'makes' if len(settings) == 1 else 'make'} no difference to {', '.join(models)} here."
    )


def _used(config: TrainConfig) -> Settings:
    unused = config.unused()
    return {name: value for name, value in config.flat().items() if name not in unused}


def _varies(name: str, trials: Iterable[Settings]) -> bool:
    return len({json.dumps(settings[name], sort_keys=True) for settings in trials if name in settings}) > 1


def _labels(params: dict[str, dict[str, Any]], varying: tuple[str, ...]) -> dict[str, str]:
    """Returns a label for each trial_id; where shortening made two alike, they end with their trial_id."""
    short = _short_names(varying)
    labels = {
        trial_id: _clipped(" ".join(f"{short[k]}={_value_text(v)}" for k, v in own.items()), 100)
        for trial_id, own in params.items()
    }
    taken = list(labels.values())
    return {
        trial_id: (label or NOTHING_VARIES) if taken.count(label) == 1 else f"{label} #{trial_id}"
        for trial_id, label in labels.items()
    }


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Returns {dotted name: the shortest end of it that no other has}; ``model.name`` counts as ``model``."""
    full = {name: name.removesuffix(".name") for name in names}
    short = {}
    for name, text in full.items():
        parts = text.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        others = [other for other in full.values() if other != text]
        short[name] = next((end for end in ends if not any(f".{o}".endswith(f".{end}") for o in others)), text)
    return short


def _value_text(value: Any) -> str:
    """Returns a value in few characters: ``0.5``, ``null``, ``[64,128]``, ``{top:11}``, ``{10,all,plateau}``."""
    text = "".join(c if c.isprintable() else "?" for c in _brief(value))
    return _clipped(text, 40)


def _brief(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"[{','.join(map(_brief, value))}]"
    if isinstance(value, dict):
        given = {key: _brief(inner) for key, inner in value.items() if inner is not None}
        names = [f"{key}:" if len(given) == 1 else "" for key in given]
        return "{" + ",".join(name + inner for name, inner in zip(names, given.values(), strict=True)) + "}"
    return json.dumps(value)


def _clipped(text: str, most: int) -> str:
    """Returns the text with its middle left out if it is too long: both ends tell trials apart."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - most // 2 - 1) :]}"


# -- reading -------------------------------------------------------------------------------------


def load_grid(path: Path) -> Grid:
    """Returns the grid of a file, every value checked.

    Raises:
        ConfigError: naming all faults at once, each as ``file:line: dotted.path: what``.
    """
    sheet = _Sheet.read(path)
    top = sheet.section((), _SECTIONS)
    axes = _axes(sheet, ("axes",)) if "axes" in top else {}
    zips = tuple(_zip_group(sheet, at) for at in sheet.members(("zip",), top))
    _refuse_twice(sheet, axes, zips)
    grid = Grid(
        path=path,
        study=_study(sheet, top),
        dataset=_dataset(sheet, top),
        base=_settings(sheet, ("base",)) if "base" in top else {},
        axes=axes,
        zips=zips,
        rows=tuple(_settings(sheet, at) for at in sheet.members(("rows",), top)),
        exclude=tuple(_condition(sheet, at) for at in sheet.members(("exclude",), top)),
        when=tuple(_when(sheet, at) for at in sheet.members(("when",), top)),
        objective=_objective(sheet, top),
        resources=_resources(sheet, top),
        budget=Budget(**_fields(sheet, ("budget",), top, {"max_usd": _optional(_dollars)})),
    )
    sheet.stop_at_faults()
    return grid


KeyPath = tuple[str | int, ...]


@dataclass
class _Sheet:
    """A parsed file and the faults found in it so far."""

    where: str
    document: strict_yaml.Document
    faults: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> _Sheet:
        try:
            with open(path, "rb") as file:
                text = file.read(strict_yaml.MAX_BYTES + 1).decode("utf-8-sig")
        except OSError as error:
            raise ConfigError(f"{path}: expected a grid file: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{path}: expected UTF-8 text, received byte {error.object[error.start]:#04x}."
            ) from error
        document = strict_yaml.load(text, str(path))
        if not isinstance(document.value, dict):
            received = "nothing" if document.value is None else show(document.value)
            raise ConfigError(f"{path}: expected a grid (study: …, dataset: …, axes: …), received {received}.")
        return cls(str(path), document)

    def at(self, path: KeyPath) -> Any:
        value = self.document.value
        for part in path:
            value = value[part]
        return value

    def place(self, path: KeyPath) -> str:
        return f"{self.where}:{self.document.line(path)}: {dotted(path)}"

    def fault(self, path: KeyPath, problem: str) -> None:
        self.faults.append((self.document.line(path), f"{self.place(path)}: {problem}"))

    def stop_at_faults(self) -> None:
        if not self.faults:
            return
        told = [text for _, text in sorted(self.faults, key=lambda fault: fault[0])]
        more = [f"{self.where}: and {len(told) - MAX_TOLD:,} more faults."] if len(told) > MAX_TOLD else []
        raise ConfigError("\n".join(told[:MAX_TOLD] + more))

    def mapping(self, path: KeyPath) -> dict[str, Any]:
        """Returns the mapping at a path; anything else is a fault and an empty one."""
        value = self.at(path)
        if isinstance(value, dict):
            return value
        self.fault(path, f"expected names with values, received {show(value)}.")
        return {}

    def section(self, path: KeyPath, known: Iterable[str]) -> dict[str, Any]:
        """Returns the known entries of the mapping at a path; the others are faults."""
        mapping = self.mapping(path)
        for name in mapping:
            if name not in known:
                hint = nearest(name, known) or f" Known are {', '.join(known)}."
                self.fault((*path, name), f"no such {'field' if path else 'part of a grid'}.{hint}")
        return {name: value for name, value in mapping.items() if name in known}

    def members(self, path: KeyPath, top: Mapping[str, Any]) -> list[KeyPath]:
        """Returns the paths of a list's members; anything but a list is a fault."""
        value = top.get(str(path[-1]), [])
        if isinstance(value, list) and len(value) <= MAX_TRIALS:
            return [(*path, n) for n in range(len(value))]
        if isinstance(value, list):
            self.fault(path, f"expected at most {MAX_TRIALS} members, received {len(value):,}.")
        else:
            self.fault(path, f"expected a list, each member on a line that begins with '- ', received {show(value)}.")
        return []


# -- settings ------------------------------------------------------------------------------------


def _leaves(sheet: _Sheet, path: KeyPath) -> dict[str, KeyPath]:
    """Returns {dotted name: path in the file} of the settings in a mapping, given nested, dotted or both."""
    leaves: dict[str, KeyPath] = {}
    walk = list(_walk(sheet.mapping(path), path, ""))
    if len(walk) > MAX_SETTINGS:
        sheet.fault(path, f"expected at most {MAX_SETTINGS} settings (SageMaker's limit), received {len(walk):,}.")
        return {}
    for name, at in walk:
        overlapping = next((other for other in leaves if _overlap(name, other)), None)
        if overlapping:
            line = sheet.document.line(leaves[overlapping])
            sheet.fault(at, f"sets {name} for the second time, the first is in line {line}. Leave one.")
        elif len(name) > MAX_NAME:
            sheet.fault(
                at, f"expected a name of at most {MAX_NAME} characters (SageMaker's limit), received {len(name)}."
            )
        else:
            leaves[name] = at
    return leaves


def _walk(mapping: Mapping[str, Any], path: KeyPath, prefix: str) -> Iterator[tuple[str, KeyPath]]:
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        # an unknown name is opened too: its parts, not itself, have a nearest right name
        if isinstance(value, dict) and value and (is_group(name) or name not in _NAMES):
            yield from _walk(value, (*path, key), f"{name}.")
        else:
            yield name, (*path, key)


def _overlap(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.")


def _is_sound(sheet: _Sheet, name: str, at: KeyPath) -> bool:
    """Says whether the value at a path suits a setting (or a group of settings); if not, adds the faults."""
    value = sheet.at(at)
    long_texts = [at + inner for inner, text in _texts(value) if len(text) > MAX_VALUE]
    for inner in long_texts:
        received = len(sheet.at(inner))
        sheet.fault(inner, f"expected at most {MAX_VALUE} characters (SageMaker's limit), received {received:,}.")
    if long_texts:
        return False
    faults = check_settings({name: value})
    for fault in faults:
        parts = [p for part in fault.path for p in (part.split(".") if isinstance(part, str) else [part])]
        sheet.fault((*at, *parts[name.count(".") + 1 :]), fault.problem)
    return not faults


def _texts(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, (*path, key))


def _settings(sheet: _Sheet, path: KeyPath) -> Settings:
    """Returns the sound settings of a mapping."""
    leaves = _leaves(sheet, path)
    return _joined({name: sheet.at(at)} for name, at in leaves.items() if _is_sound(sheet, name, at))


def _axes(sheet: _Sheet, path: KeyPath) -> Axes:
    """Returns the sound axes of a mapping: each setting with a list of values."""
    axes: Axes = {}
    leaves = _leaves(sheet, path)
    for name, at in leaves.items():
        values = sheet.at(at)
        if not is_group(name) and name not in _NAMES:
            _is_sound(sheet, name, at)
        elif not isinstance(values, list):
            sheet.fault(at, f"expected a list of values, received {show(values)}.")
        elif not values:
            sheet.fault(at, "expected at least one value, received an empty list (0 trials).")
        elif len(values) > MAX_TRIALS:
            sheet.fault(at, f"expected at most {MAX_TRIALS} values, one trial each, received {len(values):,}.")
        else:
            sound = [_is_sound(sheet, name, (*at, n)) for n in range(len(values))]
            if all(sound):
                axes[name] = tuple(values)
    if not sheet.at(path) and isinstance(sheet.at(path), dict):
        sheet.fault(path, "expected at least one setting with a list of values, received nothing.")
    return axes


def _zip_group(sheet: _Sheet, path: KeyPath) -> Axes:
    axes = _axes(sheet, path)
    if len({len(values) for values in axes.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(values)}" for name, values in axes.items())
        sheet.fault(path, f"expected lists of equal length, since their values go together; {lengths}.")
        return {}
    return axes


def _refuse_twice(sheet: _Sheet, axes: Axes, zips: Sequence[Axes]) -> None:
    """Adds a fault for each setting that two of the axes and zip groups give."""
    seen: dict[str, str] = dict.fromkeys(axes, "axes")
    for n, group in enumerate(zips):
        for name in group:
            other = next((s for s in seen if _overlap(name, s)), None)
            if other:
                sheet.fault(("zip", n), f"{name} varies in {seen[other]} already. Leave one.")
        seen |= dict.fromkeys(group, f"zip[{n}]")


def _condition(sheet: _Sheet, path: KeyPath) -> Condition:
    before = len(sheet.faults)
    settings = _settings(sheet, path)
    if not settings and len(sheet.faults) == before:
        sheet.fault(path, "expected at least one setting to compare, received nothing.")
    # compared as config.json would show them: 1e-3 and 0.001, 0 and 0.0 are the same
    normal = TrainConfig.from_settings(settings).flat()
    return Condition({name: normal[name] for name in settings}, sheet.place(path))


def _when(sheet: _Sheet, path: KeyPath) -> When:
    fields = sheet.section(path, ("if", "axes"))
    for name in ("if", "axes"):
        if name not in fields and isinstance(sheet.at(path), dict):
            sheet.fault(path, f"expected if: and axes:, received no {name}.")
    condition = _condition(sheet, (*path, "if")) if "if" in fields else Condition({}, "")
    return When(condition, _axes(sheet, (*path, "axes")) if "axes" in fields else {})


# -- the other parts -----------------------------------------------------------------------------


def _study(sheet: _Sheet, top: Mapping[str, Any]) -> str:
    study = top.get("study")
    if isinstance(study, str) and _STUDY.fullmatch(study):
        return study
    received = show(study) if "study" in top else "nothing"
    sheet.fault(
        ("study",),
        f"expected 1 to 40 of a-z, 0-9 and -, a letter first, received {received}. With trial and "
        "attempt behind it, it names SageMaker's jobs, which end at 63 characters.",
    )
    return ""


def _dataset(sheet: _Sheet, top: Mapping[str, Any]) -> str:
    dataset = top.get("dataset")
    try:
        if not isinstance(dataset, str):
            raise ConfigError(f"expected the place of the pictures, received {show(dataset)}.")
        return check_dataset(dataset)
    except ConfigError as error:
        sheet.fault(("dataset",), str(error))
        return ""


def check_dataset(text: str) -> str:
    """Returns a data set's place in normal form: a folder or zip, s3://…, kaggle:owner/name or ``sample:``.

    Raises:
        ConfigError: saying what is wrong with it.
    """
    if text.startswith("sample:") and text != "sample:":
        raise ConfigError(f"expected sample: with nothing behind it, received {text!r}.")
    if text.startswith("kaggle:") and not _KAGGLE.fullmatch(text):
        raise ConfigError(f"expected kaggle:owner/name, received {text!r}.")
    return text if text.startswith(("sample:", "kaggle:")) else check_uri(text)


def check_uri(text: str) -> str:
    """Returns a folder's path as it is, or an s3:// URI without a slash at its end.

    Raises:
        ConfigError: for another scheme, a bucket that S3 would not create, or a key with empty,
            ``.`` or ``..`` parts (S3 User Guide, general purpose bucket naming rules).
    """
    if not text.strip() or len(text) > 1024 or _UNFIT.search(text):
        raise ConfigError(f"expected a folder or s3://bucket/prefix of 1 to 1024 characters, received {show(text)}.")
    scheme, separator, rest = text.partition("://")
    if not separator or (scheme == "file" and rest.startswith("/")):
        return text
    if scheme.lower() != "s3":
        raise ConfigError(f"expected a folder or s3://bucket/prefix, received {show(text)}.")
    bucket, _, key = rest.partition("/")
    if not _BUCKET.fullmatch(bucket) or _is_ip(bucket):
        raise ConfigError(
            "expected s3:// and a bucket of 3 to 63 lower-case letters, digits, dots and hyphens, "
            f"received {show(text)}."
        )
    key = key.rstrip("/")
    if key and any(part in ("", ".", "..") for part in key.split("/")):
        raise ConfigError(f"expected no empty, '.' or '..' part between the slashes, received {show(text)}.")
    return f"s3://{bucket}/{key}" if key else f"s3://{bucket}"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


Check = Callable[[Any], str | None]
"""Says what was expected, if a value is not that."""


def _fields(sheet: _Sheet, path: KeyPath, top: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    """Returns the sound fields of a section; the others are faults and left out."""
    if path[0] not in top:
        return {}
    sound = {}
    for name, value in sheet.section(path, checks).items():
        expected = checks[name](value)
        if expected:
            sheet.fault((*path, name), f"expected {expected}, received {show(value)}.")
        else:
            sound[name] = value
    return sound


def _objective(sheet: _Sheet, top: Mapping[str, Any]) -> Objective:
    fields = _fields(sheet, ("objective",), top, {"metric": _metric, "mode": _mode})
    metric = fields.get("metric", Objective.metric)
    mode = METRICS[metric]
    if fields.get("mode", mode) != mode:
        sheet.fault(("objective", "mode"), f"expected {mode} for {metric}, received {fields['mode']}.")
    return Objective(metric, mode)


def _metric(value: Any) -> str | None:
    known = f"one of {', '.join(METRICS)}"
    if not isinstance(value, str):
        return known
    if value in METRICS:
        return None
    if value.startswith("test"):
        return f"{known} (a winner chosen on the test split would make its test figures worthless)"
    return known


def _mode(value: Any) -> str | None:
    return None if value in ("max", "min") else "max or min"


def _resources(sheet: _Sheet, top: Mapping[str, Any]) -> Resources:
    checks: dict[str, Check] = {
        "instance": _instance,
        "spot": lambda value: None if isinstance(value, bool) else "true or false",
        "max_hours": _hours,
        "max_wait_hours": _optional(_hours),
        "max_parallel": _parallel,
        "tags": lambda value: None,  # faults of its own, below
    }
    fields = _fields(sheet, ("resources",), top, checks)
    fields["tags"] = _tags(sheet, ("resources", "tags")) if "tags" in fields else {}
    resources = Resources(**fields)
    wait = resources.max_wait_hours
    if wait is not None and wait < resources.max_hours:
        sheet.fault(
            ("resources", "max_wait_hours"),
            f"expected at least max_hours ({resources.max_hours:g}), since waiting and running both count, "
            f"received {wait:g}.",
        )
    return resources


def _instance(value: Any) -> str | None:
    known = f"one of {', '.join(G4DN_VCPUS)}"
    if not isinstance(value, str):
        return known
    if value.startswith("ml."):
        return f"{known}, without ml. (artclf adds that for SageMaker)"
    return None if value in G4DN_VCPUS else known


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _hours(value: Any) -> str | None:
    if _number(value) and 0 < value <= MAX_HOURS:
        return None
    return f"hours, more than 0 and at most {MAX_HOURS} (SageMaker's 28 days)"


def _parallel(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_TRIALS:
        return None
    return f"a whole number from 1 to {MAX_TRIALS}"


def _dollars(value: Any) -> str | None:
    return None if _number(value) and value > 0 else "US dollars, more than 0"


def _optional(check: Check) -> Check:
    def checked(value: Any) -> str | None:
        expected = None if value is None else check(value)
        return f"{expected}, or null" if expected else None

    return checked


def _tags(sheet: _Sheet, path: KeyPath) -> dict[str, str]:
    """Returns the sound tags (limits: SageMaker API reference, Tag; EC2 User Guide, tag restrictions)."""
    tags = sheet.mapping(path)
    if len(tags) > MAX_TAGS:
        sheet.fault(path, f"expected at most {MAX_TAGS} tags (AWS takes 50 with artclf's own), received {len(tags)}.")
    for key, value in tags.items():
        at = (*path, key)
        if not 1 <= len(key) <= 128 or not _is_tag_text(key):
            sheet.fault(at, "expected a key of 1 to 128 letters, digits, spaces and _.:/=+-@.")
        elif key.lower().startswith(("aws:", "artclf:")):
            sheet.fault(at, "expected a key that does not begin with aws: or artclf:, which are taken.")
        if not isinstance(value, str):
            sheet.fault(at, f"expected a text, received {show(value)}. Put it in quotes.")
        elif len(value) > 256 or not _is_tag_text(value):
            sheet.fault(at, f"expected at most 256 letters, digits, spaces and _.:/=+-@, received {show(value)}.")
    return tags


def _is_tag_text(text: str) -> bool:
    return all(c.isalnum() or c in " _.:/=+-@" for c in text)
