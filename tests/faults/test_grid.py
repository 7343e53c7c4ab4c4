"""A whole grid, its submitter and trainers killed again and again: the drill that users have, at length."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from artclf.records import Dataset
from tests.conftest import PROJECT, Amount, Measured

GRID = """
study: eight
dataset: {dataset}
base:
  model: {{name: cnn_small, head: [16]}}
  data: {{image_size: 24, augment: {{flip: true}}}}
  train: {{epochs: 150, batch_size: 4}}
axes:
  train.seed: [0, 1]
  model.dropout: [0.1, 0.4]
  train.optimizer: [adam, sgd]
resources: {{max_parallel: 2}}
"""
FAULTS = 80
"""Three of the seven kinds of faults are kill -9: of a trainer, of the submitter, of all."""


def test_a_grid_of_eight_trials_killed_thirty_times_ends_as_if_nothing_had_happened(
    tiny_set: Dataset, tmp_path: Path, amount: Amount, measured: Measured
) -> None:
    if not amount(0, 1):
        pytest.skip("long: part of make soak; tests/jobs/test_drill.py has the short form")
    grid = tmp_path / "eight.yaml"
    grid.write_text(GRID.format(dataset=tiny_set.folder))
    command = [sys.executable, "-m", "jobs", "drill", grid, "--root", tmp_path / "studies", "--seed", "20261121"]
    answer = subprocess.run(
        [*map(str, command), "--faults", str(FAULTS)], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    verdict = " ".join(answer.stdout.split("\n\n")[-1].split())
    kills = sum(int(n) for n in re.findall(r"(\d+) (?:kills? of|power cuts?)", verdict))
    assert kills >= 30, verdict
    assert "All 8 trials ended exactly once, with the same weights, metrics and predictions" in verdict
    measured(f"{kills} of the faults were kill -9. {verdict}")
