"""A grid of small trials for the tests that take it the whole way."""

from __future__ import annotations

from pathlib import Path

from artclf.records import Dataset

GRID = """
study: little
dataset: {dataset}
base:
  model: {{name: cnn_tiny, head: [8]}}
  data.image_size: 16
  train: {{epochs: {epochs}, batch_size: {batch_size}}}
axes: {{train.seed: [{seeds}]}}
resources: {{max_parallel: 2}}
"""


def write_grid(folder: Path, dataset: Dataset, seeds: str, epochs: int = 2, batch_size: int = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "little.yaml"
    path.write_text(GRID.format(dataset=dataset.place, seeds=seeds, epochs=epochs, batch_size=batch_size))
    return path
