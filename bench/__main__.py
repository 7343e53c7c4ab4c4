"""``python -m bench [memory|loader|saving] [--data FOLDER]``: what training takes in memory, what loading and
committing cost.

Without ``--data`` the generated sample pictures are used; a folder of real pictures tells more.
"""

from __future__ import annotations

import argparse
import sys

from artclf.command_line import run_command


def main(argv: list[str]) -> int:
    """Runs the benchmarks that are named, or all."""
    from bench.loader import measure_loader
    from bench.memory import measure_memory
    from bench.saving import measure_saving

    benches = {"memory": measure_memory, "loader": measure_loader, "saving": measure_saving}
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(benches)} (default: all)")
    parser.add_argument("--data", default="sample:", metavar="D", help="a prepared or raw data set")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.names) - set(benches)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(benches)}")
    for name in arguments.names or benches:
        print(f"== {name}")
        benches[name](arguments.data)
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    run_command(main)
