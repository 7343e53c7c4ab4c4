"""Every setting of a run: its name, bounds, default, JSON form and digest.

Shared by the trainer and the launcher; imports neither TensorFlow nor anything of artclf but
errors. A setting is named by its dotted path (``model.dropout``) in grids, on command lines
and in messages. Adding a setting here makes it a grid axis, a ``--set`` name and a line of
config.json; nothing else lists them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from artclf.errors import ConfigError, nearest

TRIAL_ID_DIGITS = 8
MAX_TEXT = 256
"""Longest text setting. SageMaker's hyperparameters, one of the ways a setting can reach the
trainer, promise 256 characters (API reference, CreateTrainingJob)."""

ModelName = Literal[
    "cnn_tiny",
    "cnn_small",
    "cnn_wide",
    "vgg16",
    "vgg19",
    "inception_v3",
    "resnet50",
    "resnet50_v2",
    "mobilenet",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_v2_b0",
    "convnext_tiny",
]
OWN_MODELS = frozenset({"cnn_tiny", "cnn_small", "cnn_wide"})
"""Built here from layers and trained from scratch; all others are backbones of keras.applications."""
PHASE_DEFAULTS = {
    "train.learning_rate": "learning_rate",
    "model.trainable": "trainable",
    "train.schedule": "schedule",
}
"""The settings of a run that fill the nulls of its phases, and what they are called in a phase."""
ALPHA_MODELS = frozenset({"mobilenet", "mobilenet_v2"})

ShortText = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Schedule = Literal["constant", "plateau", "cosine", "steps"]
Trainable = Literal["none", "all"] | Annotated[int, Field(ge=1, le=10_000)]
LearningRate = Annotated[float, Field(gt=0, le=10)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TopClasses(_Part):
    """The N classes with the most pictures."""

    top: int = Field(ge=2, le=100_000)


class MinImages(_Part):
    """The classes with at least so many pictures."""

    min_images: int = Field(ge=1, le=10_000_000)


class Augment(_Part):
    """Random changes of the training pictures, all off by default."""

    flip: bool = False


class DataConfig(_Part):
    """Which pictures, and how a picture becomes the model's square input."""

    view: Literal["resize", "pad", "crop"] = "resize"
    image_size: int = Field(224, ge=8, le=2048)
    crops: int = Field(1, ge=1, le=64)
    colour: Literal["rgb", "grey"] = "rgb"
    augment: Augment = Augment()
    classes: Annotated[tuple[ShortText, ...], Field(min_length=2)] | TopClasses | MinImages | None = None
    sampler: Literal["natural", "balanced"] = "natural"


class HeadLayer(_Part):
    """One dense layer between the backbone and the classes."""

    units: int = Field(ge=1, le=65_536)
    batch_norm: bool = False
    activation: Literal["relu", "gelu", "swish", "tanh"] = "relu"


class ModelConfig(_Part):
    """The network. A null dropout, head or pooling means the named model's own."""

    name: ModelName = "mobilenet_v2"
    alpha: float = Field(1.0, gt=0, le=2)
    filters: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=8)] = (
        64,
        128,
        256,
        512,
    )
    weights: ShortText = "none"
    head: tuple[Annotated[int, Field(ge=1, le=65_536)] | HeadLayer, ...] | None = None
    pooling: Literal["avg", "max", "flatten"] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    l2: Annotated[float, Field(gt=0, le=10)] | None = None
    trainable: Trainable = "all"


class Plateau(_Part):
    """Schedule ``plateau``: multiply the rate by factor after patience epochs without a lower val_loss."""

    factor: float = Field(0.1, gt=0, lt=1)
    patience: int = Field(5, ge=1, le=10_000)
    min_learning_rate: float = Field(0.0, ge=0, le=1)


class Steps(_Part):
    """Schedule ``steps``: multiply the rate by factor every so many epochs."""

    factor: float = Field(0.1, gt=0, lt=1)
    every: int = Field(10, ge=1, le=10_000)


class EarlyStopping(_Part):
    """When to stop before the last epoch (null patience: never) and which epoch's weights to keep."""

    metric: Literal["val_loss", "val_accuracy", "val_top5_accuracy"] = "val_accuracy"
    patience: Annotated[int, Field(ge=1, le=10_000)] | None = None
    restore_best: bool = True


class CheckpointEvery(_Part):
    """After how many epochs, or minutes (null: no such limit), the state is committed: whichever comes first."""

    epochs: int = Field(1, ge=1, le=10_000)
    minutes: Annotated[float, Field(gt=0, le=10_000)] | None = 10.0


class Phase(_Part):
    """One stretch of training; what is null is taken from the run's own setting."""

    epochs: int = Field(ge=1, le=10_000)
    learning_rate: LearningRate | None = None
    trainable: Trainable | None = None
    schedule: Schedule | None = None


class TrainingConfig(_Part):
    """How the weights are fitted."""

    epochs: int = Field(20, ge=1, le=10_000)
    batch_size: int = Field(32, ge=1, le=4096)
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    learning_rate: LearningRate = 1e-3
    schedule: Schedule = "constant"
    plateau: Plateau = Plateau()
    steps: Steps = Steps()
    phases: Annotated[tuple[Phase, ...], Field(min_length=1, max_length=16)] | None = None
    class_weight: Literal["none", "balanced"] = "none"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    early_stopping: EarlyStopping = EarlyStopping()
    mixed_precision: Literal["none", "float16", "bfloat16"] = "none"
    checkpoint_every: CheckpointEvery = CheckpointEvery()
    seed: int = Field(0, ge=0, le=2**32 - 1)


class EvaluateConfig(_Part):
    """How a trained model is scored."""

    batch_size: int = Field(64, ge=1, le=4096)


class TrainConfig(_Part):
    """Every setting of one run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainingConfig = TrainingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], where: str = "settings") -> TrainConfig:
        """Returns the checked config for settings given nested, dotted or both.

        Raises:
            ConfigError: naming every fault at once, a line each.
        """
        faults = check_settings(settings)
        if faults:
            raise ConfigError("\n".join(f"{where}: {fault}" for fault in faults))
        return cls.model_validate_json(json.dumps(nest(settings)))

    def to_json(self) -> str:
        """Returns the text of config.json: every setting with its value, defaults too."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def flat(self) -> dict[str, Any]:
        """Returns {dotted name: JSON value} of every setting."""
        return flatten(self.model_dump(mode="json"))

    def phases(self) -> tuple[Phase, ...]:
        """Returns the run's phases with every null filled in; a run without phases has one."""
        flat = self.flat()
        defaults = {part: flat[name] for name, part in PHASE_DEFAULTS.items()}
        forced = {"trainable": "all"} if self.model.name in OWN_MODELS else {}  # there is no backbone to freeze
        return tuple(
            phase.model_copy(update={k: v for k, v in defaults.items() if getattr(phase, k) is None} | forced)
            for phase in self.train.phases or (Phase(epochs=self.train.epochs),)
        )

    def total_epochs(self) -> int:
        """Returns the epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases())

    def canonical(self) -> dict[str, Any]:
        """Returns the flat settings that decide the result: without those this model does not use,
        and with the model's own dropout, head and pooling written out.

        Two configs with equal canonical settings train the same network in the same way.
        A file of weights stands as the SHA-256 of its content, so moving it changes nothing.
        """
        flat = self.flat()
        own = own_defaults(self.model.name)
        for name in ("model.dropout", "model.head", "model.pooling"):
            if flat[name] is None:
                flat[name] = own[name]
        flat["model.head"] = [
            HeadLayer(units=layer).model_dump() if isinstance(layer, int) else layer for layer in flat["model.head"]
        ]
        flat["train.phases"] = [phase.model_dump(mode="json") for phase in self.phases()]
        unused = self.unused() | {"train.epochs", *PHASE_DEFAULTS}  # these are told by the phases
        used = {name: value for name, value in flat.items() if name not in unused}
        if "model.weights" in used:
            used["model.weights"] = weights_identity(self.model.weights)
        return {name: value + 0.0 if isinstance(value, float) else value for name, value in used.items()}  # no -0.0

    def unused(self) -> set[str]:
        """Returns the dotted names of the settings that cannot change what this run computes."""
        unused = {f"train.checkpoint_every.{name}" for name in CheckpointEvery.model_fields}
        if self.train.mixed_precision == "none":  # it came later: left out, the ids of older runs stay as they were
            unused.add("train.mixed_precision")
        if self.train.phases is not None:
            unused.add("train.epochs")
            for name, part in PHASE_DEFAULTS.items():
                if all(getattr(phase, part) is not None for phase in self.train.phases):
                    unused.add(name)
        if self.model.name in OWN_MODELS:  # built from scratch: nothing to load and nothing to freeze
            unused |= {"model.weights", "model.trainable"}
        schedules = {phase.schedule for phase in self.phases()}
        if "plateau" not in schedules:
            unused |= {f"train.plateau.{name}" for name in Plateau.model_fields}
        if "steps" not in schedules:
            unused |= {f"train.steps.{name}" for name in Steps.model_fields}
        if self.model.name not in ALPHA_MODELS:
            unused.add("model.alpha")
        if self.model.name != "cnn_wide":
            unused.add("model.filters")
        return unused


def own_defaults(model_name: str) -> dict[str, Any]:
    """Returns what null means for a model (FEATURES.md, table 1 and the sources' heads)."""
    return {
        "cnn_tiny": {"model.dropout": 0.0, "model.head": [64, 128], "model.pooling": "flatten"},
        "cnn_small": {"model.dropout": 0.2, "model.head": [128, 64], "model.pooling": "flatten"},
        "cnn_wide": {"model.dropout": 0.5, "model.head": [], "model.pooling": "avg"},
    }.get(model_name, {"model.dropout": 0.0, "model.head": [], "model.pooling": "avg"})


def trial_id(config: TrainConfig, data_digest: str) -> str:
    """Returns 8 hex digits that name a trial by what it computes: its canonical settings and its data."""
    return settings_digest(config.canonical(), data_digest)[:TRIAL_ID_DIGITS]


def identity(config: TrainConfig, data_digest: str) -> dict[str, Any]:
    """Returns what a trial's committed states belong to: the trial's full digest, and its settings for people."""
    trial = settings_digest(config.canonical(), data_digest)
    return {"trial": trial, "settings": {**config.flat(), "the data set": data_digest[:12]}}


def settings_digest(canonical: Mapping[str, Any], data_digest: str) -> str:
    """Returns the SHA-256, as 64 hex digits, of canonical settings and the data they are used on."""
    text = json.dumps({"settings": canonical, "data": data_digest}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns in words what differs between two sets of settings by dotted name."""
    return [
        f"{name} was {before.get(name)!r:.60}, now {now.get(name)!r:.60}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def weights_identity(weights: str) -> str:
    """Returns ``none``, ``imagenet``, or ``sha256:…`` of the file's content.

    Raises:
        ConfigError: if the file is not there.
    """
    if weights in ("none", "imagenet"):
        return weights
    from artclf.cache import local_file

    try:
        path = local_file(weights)
        found = path.stat()
        return f"sha256:{_file_sha256(path, found.st_size, found.st_mtime_ns)}"
    except OSError as error:
        raise ConfigError(
            f"model.weights: expected none, imagenet or a file of weights, received {weights!r}: {error.strerror}."
        ) from error


@functools.lru_cache
def _file_sha256(path: Path, size: int, changed_ns: int) -> str:
    """Hashes a file once for all trials of a grid; size and time are there to notice another file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- settings by dotted name ---------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """One thing wrong with one setting."""

    path: tuple[str | int, ...]
    problem: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.problem}"


def dotted(path: tuple[str | int, ...]) -> str:
    """Returns ``a.b[0].c`` for ("a", "b", 0, "c")."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def setting_names() -> dict[str, Any]:
    """Returns {dotted name: default} of every setting, in the order of config.json."""
    return TrainConfig().flat()


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {dotted name: value}; a mapping is opened where the settings have a group of that name."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and is_group(name):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings as nested groups, whether they were given nested, dotted or both."""
    nested: dict[str, Any] = {}
    for name, value in flatten(settings).items():
        *groups, last = name.split(".")
        at = nested
        for group in groups:
            at = at.setdefault(group, {})
        at[last] = value
    return nested


def check_settings(settings: Mapping[str, Any]) -> list[Fault]:
    """Returns every fault of settings given nested, dotted or both; none if they are fine."""
    known = setting_names()
    faults = []
    sound: dict[str, Any] = {}
    for name, value in flatten(settings).items():
        if name in known and not _is_utf8(value):
            faults.append(Fault((name,), f"expected text that UTF-8 can hold, received {show(value)}."))
        elif name in known:
            sound[name] = value
        elif is_group(name):
            faults.append(
                Fault((name,), f"expected settings below it ({_below(name, known)}), received {show(value)}.")
            )
        else:
            faults.append(Fault((name,), f"no such setting.{nearest(name, known)}"))
    try:
        text = json.dumps(nest(sound))
    except (TypeError, ValueError) as error:
        return [*faults, Fault(("settings",), f"expected plain numbers, texts, lists and mappings: {error}.")]
    try:
        TrainConfig.model_validate_json(text)
    except ValidationError as error:
        faults.extend(_faults_of(error, nest(sound)))
    return faults


def _below(name: str, known: Iterable[str]) -> str:
    """Returns the names of the settings right below a group."""
    return ", ".join(
        dict.fromkeys(full[len(name) + 1 :].split(".")[0] for full in known if full.startswith(f"{name}."))
    )


def parse_setting(text: str) -> tuple[str, Any]:
    """Returns (dotted name, value) of a ``--set key=value``; the value is read as in a grid file.

    Raises:
        ConfigError: if there is no ``=``, or the value is not one YAML 1.2 value.
    """
    from artclf.strict_yaml import parse_value

    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected key=value, for example --set model.dropout=0.5.")
    return name.strip(), parse_value(value, f"--set {name.strip()}")


def is_group(name: str) -> bool:
    """Says whether a dotted name holds settings below it, such as ``train`` or ``train.plateau``."""
    annotation: Any = TrainConfig
    for part in name.split("."):
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return False
        if part not in annotation.model_fields:
            return False
        annotation = annotation.model_fields[part].annotation
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_utf8(value: Any) -> bool:
    """Says whether all text in a value can be written to a file; half a surrogate pair cannot."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def _faults_of(error: ValidationError, given: dict[str, Any]) -> Iterator[Fault]:
    """Yields one fault for each setting (or member of a listed part) that the schema refused."""
    found: dict[tuple[str | int, ...], tuple[str, str]] = {}
    for detail in error.errors():
        path, expected = _meaningful(detail["loc"])
        found.setdefault(path, (detail["type"], expected))
    inner = {path[:n] for path in found for n in range(len(path))}
    for path, (kind, expected) in found.items():
        if path in inner:
            continue  # pydantic calls a list too short when its members are wrong
        if kind == "extra_forbidden":
            name = str(path[-1])
            yield Fault(path, f"no such setting.{nearest(name, expected.split(', '))}")
        elif kind == "missing":
            yield Fault(path, f"expected {expected}, received nothing.")
        else:
            yield Fault(path, f"expected {expected}, received {show(_value_at(given, path))}.")


def _value_at(given: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        given = given[part]
    return given


def _meaningful(loc: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], str]:
    """Returns the part of a pydantic location that a user wrote, and what is expected there.

    Pydantic puts the names of a union's alternatives into the location; the walk along the
    annotations ends at the first such name.
    """
    annotation: Any = TrainConfig
    metadata: list[Any] = []
    path: list[str | int] = []
    for part in loc:
        inner, _ = _unwrap(annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            if part not in inner.model_fields:
                return (*path, part), ", ".join(inner.model_fields)
            field = inner.model_fields[str(part)]
            annotation, metadata = field.annotation, list(field.metadata)
        elif typing.get_origin(inner) is tuple and isinstance(part, int):
            annotation, metadata = typing.get_args(inner)[0], []
        else:
            break
        path.append(part)
    return tuple(path), describe(annotation, metadata)


def _unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    """Returns an annotation without Annotated and without its null alternative, and its constraints."""
    metadata: list[Any] = []
    if typing.get_origin(annotation) is Annotated:
        annotation, *extra = typing.get_args(annotation)
        metadata = _constraints(extra)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        others = [a for a in typing.get_args(annotation) if a is not type(None)]
        if len(others) == 1:
            return _unwrap(others[0])
    return annotation, metadata


def _constraints(metadata: list[Any]) -> list[Any]:
    """Returns the bounds in a list of annotations, those inside a pydantic Field too."""
    found: list[Any] = []
    for item in metadata:
        found.extend(getattr(item, "metadata", None) or [item])
    return found


def describe(annotation: Any, metadata: list[Any] | None = None) -> str:
    """Returns in words what a setting accepts: ``a number from 0 to 1 (1 excluded)``."""
    metadata = _constraints(metadata or [])
    if typing.get_origin(annotation) is Annotated:
        annotation, *extra = typing.get_args(annotation)
        metadata = metadata + _constraints(extra)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args)) if len(args) > 1 else str(args[0])
    if origin in (typing.Union, types.UnionType):
        words = [describe(arg) for arg in args if arg is not type(None)]
        return " or ".join(words + (["null"] if type(None) in args else []))
    if origin is tuple:
        least = next((m.min_length for m in metadata if isinstance(m, annotated_types.MinLen)), 0)
        many = f" of at least {least}" if least > 1 else ""
        return f"a list{many} (each {describe(args[0])})"
    if annotation is bool:
        return "true or false"
    if annotation is str:
        return f"a text of 1 to {MAX_TEXT} characters"
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _range(metadata)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(f"{name}: …" for name in annotation.model_fields) + "}"
    return str(annotation)


def _range(metadata: list[Any]) -> str:
    low = high = ""
    excluded = []
    for bound in metadata:
        if isinstance(bound, annotated_types.Ge | annotated_types.Gt):
            least = bound.ge if isinstance(bound, annotated_types.Ge) else bound.gt
            low = f" from {least}"
            excluded += [str(least)] if isinstance(bound, annotated_types.Gt) else []
        if isinstance(bound, annotated_types.Le | annotated_types.Lt):
            most = bound.le if isinstance(bound, annotated_types.Le) else bound.lt
            high = f" to {most}"
            excluded += [str(most)] if isinstance(bound, annotated_types.Lt) else []
    return low + high + (f" ({' and '.join(excluded)} excluded)" if excluded else "")


def show(value: Any) -> str:
    """Returns a value with its kind, as a person would name it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"{value[:60]!r}{'…' if len(value) > 60 else ''}, a text"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}: {json.dumps(value, default=str)[:60]}"
    if isinstance(value, Mapping):
        return f"a mapping: {json.dumps(value, default=str)[:60]}"
    return str(value) if len(str(value)) <= 60 else f"{str(value)[:60]}…"
