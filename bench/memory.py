"""Peak memory of training over 2,000 and over 20,000 pictures.

The larger set is the smaller one ten times over: its shards are hard links, so it costs no disk and
both sets decode the same pictures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from artclf.datasets import open_dataset
from artclf.records import INDEX, MANIFEST, PICTURES, Dataset, file_sha256, shard_name
from artclf.storage import make_folder

PICTURES_IN_BASE = 2_000
TIMES = 10
SETTINGS = ("model.name=cnn_small", "data.image_size=96", "train.epochs=1", "train.batch_size=32")


def measure_memory(data: str) -> None:
    """Prints the peak resident memory of one epoch over each set, and their ratio."""
    dataset = open_dataset(data)
    # Beside the data set, since hard links cannot leave a file system.
    with tempfile.TemporaryDirectory(prefix=".tmp-bench-", dir=dataset.folder.parent) as folder:
        peaks = {}
        for times in (1, TIMES):
            copy = multiply(dataset, Path(folder) / f"x{times}", times)
            peaks[times] = peak_rss_mb(copy, Path(folder) / f"run{times}")
            print(f"{len(Dataset.open(copy)):>7,} pictures: peak {peaks[times]:,.0f} MB")
        print(f"ratio {peaks[TIMES] / peaks[1]:.3f} (target: below 1.10)")


def multiply(dataset: Dataset, folder: Path, times: int) -> Path:
    """Writes a data set of the first pictures of another, each so many times; its shards are hard links."""
    shards = dataset.manifest["shards"]
    make_folder(folder / "shards")
    # An even share of every class and split.
    chosen = np.sort(np.random.default_rng(0).permutation(len(dataset))[:PICTURES_IN_BASE])
    rows = np.concatenate([np.array(dataset.index[chosen]) for _ in range(times)])
    rows["shard"] += np.repeat(np.arange(times, dtype=np.uint32) * len(shards), len(chosen))
    for copy in range(times):
        for number in range(len(shards)):
            os.link(dataset.folder / shard_name(number), folder / shard_name(copy * len(shards) + number))
    np.save(folder / INDEX, rows)
    with open(folder / PICTURES, "w") as file:
        file.write("record,name\n" + "".join(f"{record},p{record}\n" for record in range(len(rows))))
    manifest = {
        **dataset.manifest,
        "digest": f"{times:064x}",
        "files": {name: {"sha256": file_sha256(folder / name)} for name in (INDEX, PICTURES)},
        "counts": {**dataset.manifest["counts"], "used": len(rows)},
        "shards": [
            {**shard, "name": shard_name(copy * len(shards) + number)}
            for copy in range(times)
            for number, shard in enumerate(shards)
        ],
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def peak_rss_mb(dataset: Path, run: Path) -> float:
    """Trains one epoch in a process of its own and returns its peak resident memory in 10^6 bytes."""
    command = [sys.executable, "-m", "artclf.train", "--data", str(dataset), "--run-dir", str(run)]
    for setting in SETTINGS:
        command += ["--set", setting]
    trainer = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(trainer.pid, 0)
    trainer.returncode = os.waitstatus_to_exitcode(status)
    if trainer.returncode:
        raise SystemExit(f"the trainer ended with exit code {trainer.returncode}")
    return usage.ru_maxrss * 1024 / 1e6
