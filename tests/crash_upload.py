"""``python -m tests.crash_upload URI FOLDER``: commits here and to a bucket, again and again, until it is killed."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np

from artclf.checkpoint import Checkpoints, LocalGenerations
from artclf.s3 import S3Storage
from container.generations import BucketGenerations


def main(uri: str, folder: Path) -> None:
    storage = S3Storage(uri, part_bytes=5 * 2**20)
    generations = BucketGenerations(storage.below("checkpoint"))
    newest, _ = generations.fetch_newest_sound(folder)
    local = LocalGenerations(folder)
    for number in itertools.count((newest or 0) + 1):
        # Of the number alone, so that whoever reads it knows what must be there; one array goes in two parts.
        arrays = {"0": np.full(700_000, number, np.float64), "1": np.full(1000, number, np.float64)}
        Checkpoints(local).commit({"number": number}, {"weights": arrays})
        generations.put(number, local.fetch(number))
        storage.write("status.json", str(number).encode())
        print(number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
