"""What the crash harness imports once, before it forks trainers. Nothing of TensorFlow may begin to work here."""

import importlib

from artclf.quiet import load_tensorflow

load_tensorflow()
for name in ("environment", "evaluate", "learner", "predict", "saver", "train", "training"):
    importlib.import_module(f"artclf.{name}")
