"""One save-prune cycle as a process of its own, for strace: ``python -m tests.crash_save CHECKPOINTS STATE``.

Commits the generation that lies in STATE once more, over the real code and without TensorFlow, which
would only make each of some hundred starts slow.
"""

from __future__ import annotations

from pathlib import Path

from artclf.checkpoint import Checkpoints, Generation, LocalGenerations
from artclf.command_line import run_command


def newest(folder: Path) -> Generation:
    """Returns the newest sound generation in a folder."""
    generation, damaged = Checkpoints(LocalGenerations(folder)).restore()
    assert generation is not None and not damaged, damaged
    return generation


def main(argv: list[str]) -> int:
    """Commits once."""
    folder, source = map(Path, argv)
    generation = newest(source)
    Checkpoints(LocalGenerations(folder)).commit(generation.state, generation.arrays)
    return 0


if __name__ == "__main__":
    run_command(main)
