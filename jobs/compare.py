"""Whether two studies of the same grid computed the same: weights, metrics, scores, predictions and results."""

from __future__ import annotations

import contextlib
import csv
import json
import zipfile
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from artclf.errors import StorageError
from artclf.rundir import RunDir
from jobs.study import Study

_CLOCKED = {"seconds", "images_per_second", "cost_usd"}
"""What depends on the clock, in metrics.jsonl and results.csv."""


def compare(undisturbed: Study, disturbed: Study) -> list[str]:
    """Returns how a disturbed study differs from the undisturbed one: the file, and the first value that differs."""
    differences = _compare_results(undisturbed.path, disturbed.path)
    with contextlib.suppress(OSError):  # said already
        for row in _rows(undisturbed.path):
            differences += compare_runs(undisturbed.run(row["trial_id"]), disturbed.run(row["trial_id"]))
    return differences


def _compare_results(one: Path, other: Path) -> list[str]:
    try:
        tables = [
            [{name: value for name, value in row.items() if name not in _CLOCKED} for row in _rows(study)]
            for study in (one, other)
        ]
    except OSError as error:
        return [f"results.csv: cannot be read: {error.strerror}"]
    return _first_difference("results.csv", *tables)


def _rows(study: Path) -> list[dict[str, str]]:
    with open(study / "results.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def compare_runs(one: RunDir, other: RunDir) -> list[str]:
    """Returns how what two finished runs left differs: the file, and the first value that differs."""
    differences = []
    for path, read in {
        one.metrics: _metrics,
        **{one.evaluation_json(split): _json for split in ("val", "test")},
        **{one.predictions_csv(split): _lines for split in ("val", "test")},
        one.model: _weights,
        one.model_json: _model,
    }.items():
        name = path.relative_to(one.path)
        shown = f"{one.path.name}/{name}"
        try:
            differences += _first_difference(shown, read(path), read(other.path / name))
        except FileNotFoundError:
            differences.append(f"{shown}: missing")
        except (OSError, ValueError, KeyError, StorageError, zipfile.BadZipFile) as error:
            differences.append(f"{shown}: cannot be compared: {error}")
    # None at all is sound: the trainer may be killed between its verdict and this line.
    ended = other.log.read_text(encoding="utf-8", errors="replace").count("done in") if other.log.exists() else 0
    return differences + ([f"{one.path.name}/log.txt: the trial ended {ended} times"] if ended > 1 else [])


def _metrics(path: Path) -> Any:
    return [{k: v for k, v in line.items() if k not in _CLOCKED} for line in RunDir(path.parent).read_metrics()]


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _model(path: Path) -> Any:
    """Returns model.json without where the first weights lay: another place on another machine, and told by their
    content in the trial's id."""
    about = _json(path)
    with contextlib.suppress(KeyError, TypeError):
        del about["settings"]["model"]["weights"]
    return about


def _lines(path: Path) -> Any:
    return path.read_bytes().split(b"\n")


def _weights(path: Path) -> Any:
    """Returns the bytes of the weights; those around them hold the time of saving. Equal weights give equal bytes."""
    with zipfile.ZipFile(path) as file:
        return file.read("model.weights.h5")


def _first_difference(where: str, one: Any, other: Any) -> list[str]:
    """Returns the first place in which two values differ, in words, or nothing."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(f" {key}", one.get(key), other.get(key)) for key in {**one, **other}]
    elif isinstance(one, list) and isinstance(other, list):
        pairs = [(f" {i}", *pair) for i, pair in enumerate(zip_longest(one, other), 1)]
    elif repr(one) == repr(other):  # by their text: NaN is equal to NaN
        return []
    elif isinstance(one, bytes) and isinstance(other, bytes) and max(len(one), len(other)) > 2000:
        place = _same_for(one, other)
        return [f"{where}: {len(other):,} bytes, undisturbed {len(one):,}; the first other one is at {place:,}"]
    else:
        shown, expected = _around_difference(_text(other), _text(one))
        return [f"{where}: {shown}, undisturbed {expected}"]
    return next((found for name, *pair in pairs if (found := _first_difference(where + name, *pair))), [])


def _same_for(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Returns the place of the first difference."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else "nothing" if value is None else str(value)


def _around_difference(one: str, other: str) -> list[str]:
    """Returns what can be shown of long texts: the part in which they differ."""
    start = max(0, _same_for(one, other) - 20) if max(len(one), len(other)) > 50 else 0
    return [
        ("…" if start else "") + text[start : start + 50] + ("…" if start + 50 < len(text) else "")
        for text in (one, other)
    ]
