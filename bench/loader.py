"""CPU time of one pass over the pictures: artclf's batches against Keras's own directory reader.

Both give batches of 32 at 224 px from the same encoded bytes, each in a process of its own, in turn.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from artclf.datasets import open_dataset
from artclf.records import Dataset

PICTURES = 1_000
ROUNDS = 3

OURS = """
import os, sys, time
from artclf.classes import choose_classes
from artclf.config import DataConfig
from artclf.data import Batches
from artclf.records import Dataset
from pathlib import Path
dataset = Dataset.open(Path(sys.argv[1]))
config = DataConfig(image_size=224)
split = choose_classes(dataset, config).split(dataset, "train")
batches = Batches(dataset, split, config, 32)
begun, wall, count = time.process_time(), time.monotonic(), 0
for batch in batches.epoch(0, 0):
    count += len(batch.labels)
    if count >= int(sys.argv[3]):
        break
print(1000 * (time.process_time() - begun) / count, count / (time.monotonic() - wall))
"""
KERAS = """
import os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras
files = keras.utils.image_dataset_from_directory(sys.argv[2], image_size=(224, 224), batch_size=32, verbose=False)
begun, wall, count = time.process_time(), time.monotonic(), 0
for images, labels in files:
    count += len(labels)
print(1000 * (time.process_time() - begun) / count, count / (time.monotonic() - wall))
"""


def measure_loader(data: str) -> None:
    """Prints CPU seconds per 1000 pictures of both, and the ratio."""
    dataset = open_dataset(data)
    with tempfile.TemporaryDirectory() as folder:
        _unpack(dataset, Path(folder))
        figures: dict[str, list[tuple[float, float]]] = {"artclf": [], "keras": []}
        for _ in range(ROUNDS):
            for name, program in (("artclf", OURS), ("keras", KERAS)):
                figures[name].append(_run(program, dataset.folder, folder))
    cpu = {name: statistics.median(f[0] for f in found) for name, found in figures.items()}
    speed = {name: statistics.median(f[1] for f in found) for name, found in figures.items()}
    for name, seconds in cpu.items():
        print(f"{name:>7}: {seconds:.2f} CPU s per 1000 pictures, {speed[name]:,.0f} pictures/s")
    print(f"CPU ratio artclf / keras {cpu['artclf'] / cpu['keras']:.2f}, speed {speed['artclf'] / speed['keras']:.2f}")


def _unpack(dataset: Dataset, folder: Path) -> None:
    """Writes the pictures as files, a folder a class, for the directory reader."""
    for record in dataset.select("train")[:PICTURES].tolist():
        content = dataset.read(record)
        home = folder / str(int(dataset.index["label"][record]))
        home.mkdir(exist_ok=True)
        suffix = ".jpg" if content[:2] == b"\xff\xd8" else ".png"
        (home / f"{record}{suffix}").write_bytes(content)


def _run(program: str, dataset: Path, folder: str) -> tuple[float, float]:
    command = [sys.executable, "-c", program, str(dataset), folder, str(PICTURES)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."})
    cpu, speed = answer.stdout.split()[-2:]
    return float(cpu), float(speed)
