"""Kinds of command-line arguments that several commands share."""

from __future__ import annotations

import argparse
import math


def positive(text: str) -> int:
    """Returns the whole number from 1 that a text means; argparse tells anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, received {text!r}")
    return int(text)


def positive_number(text: str) -> float:
    """Returns the number above 0 that a text means; argparse tells anything else."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, received {text!r}")
    return number
