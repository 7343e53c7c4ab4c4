"""Fake studies as finished runs leave them: real files in the real forms, figures drawn from a seed."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from artclf.config import TrainConfig
from artclf.evaluate import Evaluation, score, write_predictions
from artclf.records import FORMAT, INDEX_DTYPE, SPLITS, Dataset, dataset_digest, file_sha256, shard_name
from artclf.rundir import RunDir, RunStatus, State, write_json
from artclf.tables import write_csv

NASTY = ("<script>alert(1)</script>", 'a|b "c" & d', "=SUM(A1)", "Albrecht_Dürer", "李_白", "`*_[x](y)")
"""Class names that a page, a table or a spreadsheet could trip over."""


@dataclass(frozen=True)
class Fake:
    """One trial as it shall look: ``skill`` says how far the true class's score stands above the others."""

    params: Mapping[str, Any] = field(default_factory=dict)
    skill: float = 2.0
    state: State | None = "done"
    reason: str = ""
    epochs: int = 8
    gap: float = 0.05
    seconds: float = 100.0
    parameters: int = 1_000_000
    environment: Mapping[str, Any] = field(default_factory=dict)


def grid_of_fakes(**axes: Sequence[Any]) -> list[Fake]:
    """Returns a fake for each point of the product; ``__`` in a name stands for a dot."""
    points: list[dict[str, Any]] = [{}]
    for name, values in axes.items():
        points = [{**point, name.replace("__", "."): value} for point in points for value in values]
    return [Fake(point, skill=1.5 + 0.37 * (i * 7 % 11)) for i, point in enumerate(points)]


def make_study(
    root: Path,
    trials: Sequence[Fake],
    classes: Sequence[str] = ("cat", "dog", "owl"),
    per_class: int = 12,
    dataset: Dataset | None = None,
    objective: Mapping[str, str] | None = None,
    splits: Sequence[str] = ("val", "test"),
    name: str = "fakes",
) -> Path:
    """Returns the folder of a study with these trials, scored on the pictures of the data set, if any."""
    study = root / name
    varying = list(dict.fromkeys(setting for trial in trials for setting in trial.params))
    names = [info.slug for info in dataset.classes] if dataset else list(classes)
    entries = [_entry(i, trial) for i, trial in enumerate(trials)]
    content: dict[str, Any] = {
        "study": name,
        "dataset": "data/fakes",
        "data_digest": dataset.digest if dataset else "d" * 64,
        "objective": dict(objective or {"metric": "val_macro_f1", "mode": "max"}),
        "varying": varying,
        "trials": entries,
        "resources": {"instance": "g4dn.xlarge"},
        "grid": f"grids/{name}.yaml",
    }
    write_json(study / "study.json", content)
    for i, (trial, entry) in enumerate(zip(trials, entries, strict=True)):
        if trial.state is not None:
            run = RunDir(study / "runs" / entry["trial_id"])
            _write_run(run, trial, i, names, per_class, dataset, splits, content["data_digest"])
    return study


def _entry(number: int, trial: Fake) -> dict[str, Any]:
    label = " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in trial.params.items())
    identity = hashlib.sha256(f"{number}{label}".encode()).hexdigest()[:8]
    return {"trial_id": identity, "label": label or "base", "params": dict(trial.params)}


def _write_run(
    run: RunDir,
    trial: Fake,
    number: int,
    classes: list[str],
    per_class: int,
    dataset: Dataset | None,
    splits: Sequence[str],
    digest: str,
) -> None:
    assert trial.state is not None
    config = TrainConfig.from_settings({"train.seed": number})
    run.path.mkdir(parents=True)
    run.config.write_text(config.to_json(), encoding="utf-8")
    done = trial.state == "done"
    epochs = trial.epochs if done else trial.epochs // 2
    run.write_status(
        RunStatus(
            trial.state,
            trial.reason,
            epoch=epochs,
            started="2026-01-02T03:04:05Z",
            ended="" if trial.state == "running" else "2026-01-02T04:04:05Z",
            seconds=trial.seconds,
        )
    )
    write_json(run.environment, {**_ENVIRONMENT, "data_digest": digest, **trial.environment})
    scores: dict[str, Evaluation] = {}
    for i, split in enumerate(splits if done else ()):
        scores[split] = _score_split(run, split, number * 10 + i, trial.skill, classes, per_class, dataset)
    accuracy = scores["val"].accuracy if scores else 0.5
    run.write_metrics(_history(trial, epochs, accuracy, scores.get("val")))
    if done:
        run.model.write_bytes(f"the weights of {run.path.name}".encode())
        write_json(run.model_json, _model(trial, run.path.name, epochs, classes, digest, config))


_ENVIRONMENT: dict[str, Any] = {
    "device": "Painted CPU @ 2.0 GHz",
    "gpus": [],
    "cpu": "Painted CPU @ 2.0 GHz",
    "cores": 2,
    "memory_gb": 7.8,
    "driver": None,
    "platform": "Linux",
    "python": "3.11.2",
    "tensorflow": "2.21.0",
    "keras": "3.12.0",
    "artclf": "0.1.0",
    "image_digest": None,
    "commit": "c0ffee" * 6 + "beef",
    "instance": None,
}


def _score_split(
    run: RunDir, split: str, seed: int, skill: float, classes: list[str], per_class: int, dataset: Dataset | None
) -> Evaluation:
    random = np.random.default_rng(seed)
    if dataset is None:
        labels = np.repeat(np.arange(len(classes)), per_class)
        records = np.arange(len(labels))
        names = [f"{classes[label]}/{record}.jpg" for record, label in zip(records, labels, strict=True)]
    else:
        records = dataset.select(split)
        labels = np.asarray(dataset.index["label"][records], dtype=np.int64)
        names = dataset.names(records)
    raw = random.normal(size=(len(labels), len(classes)))
    raw[np.arange(len(labels)), labels] += skill
    probabilities: npt.NDArray[np.float64] = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    scores = score(labels, probabilities, classes)
    write_json(run.evaluation_json(split), scores.to_dict())
    write_predictions(run.predictions_csv(split), records, names, labels, probabilities, classes)
    return scores


def _history(trial: Fake, epochs: int, accuracy: float, val: Evaluation | None) -> list[dict[str, Any]]:
    """Returns curves that rise to the validation accuracy at the last epoch."""
    final = 1 - math.exp(-3)
    lines = []
    for epoch in range(1, epochs + 1):
        reached = (1 - math.exp(-3 * epoch / max(epochs, 1))) / final
        train = min((accuracy + trial.gap) * reached, 1.0)
        lines.append(
            {
                "epoch": epoch,
                "phase": 1,
                "learning_rate": 1e-3,
                "seconds": trial.seconds / max(trial.epochs, 1),
                "images_per_second": 400.0 + 3 * epoch,
                "loss": 1.5 - reached,
                "accuracy": train,
                "top5_accuracy": min(train * 1.1, 1.0),
                "val_loss": val.loss if val and epoch == epochs else 1.8 - reached,
                "val_accuracy": accuracy * reached,
                "val_top5_accuracy": min(accuracy * reached * 1.1, 1.0),
            }
        )
    return lines


def _model(
    trial: Fake, trial_id: str, epochs: int, classes: list[str], digest: str, config: TrainConfig
) -> dict[str, Any]:
    return {
        "format": "artclf-model/1",
        "model": "cnn_small",
        "parameters": trial.parameters,
        "classes": [{"slug": name, "display": name.replace("_", " "), "about": {}} for name in classes],
        "preprocessing": {"view": "resize", "image_size": 64, "crops": 1, "colour": "rgb"},
        "data_digest": digest,
        "trial_id": trial_id,
        "best_epoch": epochs,
        "settings": config.model_dump(mode="json"),
    }


# -- a data set ----------------------------------------------------------------------------------


def make_dataset(
    folder: Path, classes: Sequence[str] = ("cat", "dog", "owl"), per_class: int = 20, side: int = 48
) -> Dataset:
    """Returns a prepared data set of painted pictures, four of five for training, the rest half val and half test."""
    (folder / "shards").mkdir(parents=True)
    rows = np.zeros(len(classes) * per_class, dtype=INDEX_DTYPE)
    pictures: list[list[Any]] = []
    with open(folder / shard_name(0), "wb") as shard:
        for record in range(len(rows)):
            label, number = divmod(record, per_class)
            split = {8: 1, 9: 2}.get(number % 10, 0)
            content = _painting(label, record, side)
            place = shard.tell()
            shard.write(content)
            rows[record] = (0, place, len(content), zlib.crc32(content), label, split, side, side, record)
            sha = hashlib.sha256(content).hexdigest()
            name = f"{classes[label]}/{number}.jpg"
            pictures.append([record, name, classes[label], SPLITS[split], side, side, record, sha, ""])
    np.save(folder / "index.npy", rows, allow_pickle=False)
    header = ["record", "name", "class", "split", "width", "height", "group", "sha256", "fixed"]
    write_csv(folder / "pictures.csv", header, pictures)
    digest = dataset_digest(classes, [(row[7], record // per_class, 0) for record, row in enumerate(pictures)])
    write_json(folder / "manifest.json", _manifest(folder, classes, rows, digest))
    return Dataset.open(folder)


def _painting(label: int, seed: int, side: int) -> bytes:
    """Returns a JPEG: the class sets the hue and the direction of the strokes, the seed the rest."""
    from PIL import Image

    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    wave = np.sin(6.3 * (x * math.cos(label) + y * math.sin(label)) * random.uniform(1, 4) + random.uniform(0, 6))
    hue = np.array([math.sin(label * 1.7 + turn) for turn in (0, 2.1, 4.2)])
    pixels = 128 + 60 * hue + 50 * wave[..., None] + random.normal(scale=8, size=(side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _manifest(folder: Path, classes: Sequence[str], rows: npt.NDArray[np.void], digest: str) -> dict[str, Any]:
    counts = {split: int((rows["split"] == i).sum()) for i, split in enumerate(SPLITS)}
    shard = folder / shard_name(0)
    return {
        "format": FORMAT,
        "digest": digest,
        "classes": [
            {
                "slug": name,
                "display": name.replace("_", " "),
                "about": {"years": "1471-1528", "genre": "Renaissance"} if i == 0 else {},
                "counts": {
                    split: int(((rows["label"] == i) & (rows["split"] == j)).sum()) for j, split in enumerate(SPLITS)
                },
            }
            for i, name in enumerate(classes)
        ],
        "counts": {"found": len(rows) + 2, "used": len(rows), "skipped": 2, "duplicates": 1, "ignored": 1, **counts},
        "splits": {"ratios": [0.8, 0.1, 0.1], "seed": 0},
        "shards": [
            {"name": shard_name(0), "bytes": shard.stat().st_size, "records": len(rows), "sha256": file_sha256(shard)}
        ],
        "skipped": [
            {"name": "cat/<torn>.jpg", "reason": "cannot be decoded: the file ends too early"},
            {"name": "dog/page.jpg", "reason": "not a picture: HTML"},
        ],
        "fixed": {"turned by EXIF": 3, "converted from CMYK": 2},
        "near_duplicates": {"groups": 2, "pictures": 4, "list": []},
        "conflicts": [],
        "warnings": [],
        "sources": ["fakes"],
        "options": {},
    }


def rewrite(path: Path, **changes: Any) -> None:
    """Changes some members of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**content, **changes})
