"""The Keras side of training: one optimisation step, probabilities of a split, arrays in and out.

Every random choice inside the network (dropout) is set anew before each step from (seed, step), and
the optimizer's slots go in and out with the weights, so what a step computes depends only on the
arrays, the step's number and its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from artclf.checkpoint import Arrays
from artclf.classes import Ints
from artclf.config import Phase, TrainConfig
from artclf.data import Batch
from artclf.errors import DivergedError, ResumeError
from artclf.models import Network, build

Floats = npt.NDArray[np.float64]

SUMS = ("loss", "accuracy", "top5_accuracy", "count")
"""The running sums of an epoch: of the cross-entropy, of hits, of hits among the five likeliest, of pictures."""


class Learner:
    """A network, its optimizer and the compiled steps over them.

    Args:
        config: the run's settings.
        classes: how many the network tells apart.
        loss_weights: (classes,) float32 weights of the loss.
    """

    def __init__(self, config: TrainConfig, classes: int, loss_weights: npt.NDArray[np.float32]) -> None:
        keras.utils.clear_session()  # layers are numbered from one again, so equal runs save equal files
        keras.utils.set_random_seed(config.train.seed)
        self._config = config
        self._classes = classes
        self._loss_weights = tf.constant(loss_weights)
        keras.config.set_dtype_policy(_POLICIES[config.train.mixed_precision])
        try:
            self.network: Network = build(config.model, classes, config.data.image_size, config.data.colour)
        finally:
            keras.config.set_dtype_policy("float32")
        self._weights = self.network.model.weights
        known = {id(weight) for weight in self._weights}
        self._random_states = [v for v in self.network.model.variables if id(v) not in known]
        self._sums = tf.Variable(np.zeros(len(SUMS)), dtype=tf.float64, trainable=False)
        self._objective = tf.Variable(0.0, dtype=tf.float32, trainable=False)
        self._optimizer: Any = None
        self._step: Any = None
        self._predict = tf.function(self._probabilities, input_signature=[self._pixels_spec()])

    def begin_phase(self, phase: Phase) -> None:
        """Frees or freezes the backbone as the phase says and starts a new optimizer."""
        self.network.set_trainable(phase.trainable or "all")
        self._optimizer = _OPTIMIZERS[self._config.train.optimizer](learning_rate=phase.learning_rate)
        if self._config.train.mixed_precision == "float16":  # its gradients would vanish below 6e-8 without a scale
            self._optimizer = keras.optimizers.LossScaleOptimizer(self._optimizer)
        self._optimizer.build(self.network.model.trainable_variables)
        labels = tf.TensorSpec((None,), tf.int64)
        number = tf.TensorSpec((), tf.int64)
        self._step = tf.function(self._train_step, input_signature=[self._pixels_spec(), labels, number])

    def set_learning_rate(self, rate: float) -> None:
        """Sets the rate of the steps that follow."""
        self._optimizer.learning_rate.assign(rate)

    def step(self, batch: Batch, number: int) -> None:
        """Fits the weights to one batch and adds its figures to the sums.

        Args:
            batch: the pictures.
            number: the step's number over the whole run; decides what dropout drops.
        """
        self._step(batch.images, batch.labels, np.int64(number))

    def sums(self) -> Floats:
        """Returns the (4,) running SUMS of the epoch under way.

        Raises:
            DivergedError: if the loss of any step so far was not finite.
        """
        sums: Floats = self._sums.numpy()
        objective = float(self._objective.numpy())
        if not (np.isfinite(sums).all() and np.isfinite(objective)):
            raise DivergedError(
                f"the loss is not finite ({objective}): the training diverged. "
                f"Try a smaller train.learning_rate (now {float(self._optimizer.learning_rate.numpy()):g})."
            )
        return sums

    def set_sums(self, sums: Iterable[float]) -> None:
        """Sets the running sums, to zero for a new epoch or to those of a restored one."""
        self._sums.assign(list(sums))

    def probabilities(self, batches: Iterable[Batch], check_stop: Callable[[], None]) -> tuple[Floats, Ints]:
        """Returns (N, classes) probabilities and (N,) labels of all pictures of some batches, in order;
        those of a picture's several views are averaged."""
        parts, labels = [], []
        for batch in batches:
            check_stop()
            views = self._predict(batch.images).numpy().astype(np.float64)
            parts.append(views.reshape(len(batch.labels), -1, self._classes).mean(axis=1))
            labels.append(batch.labels)
        return np.concatenate(parts), np.concatenate(labels)

    def weight_arrays(self) -> Arrays:
        """Returns copies of all weights, the frozen and the moving ones too."""
        return {f"{i:04d}": weight.value.numpy().copy() for i, weight in enumerate(self._weights)}

    def optimizer_arrays(self) -> Arrays:
        """Returns copies of the optimizer's slots and counters, the loss scale among them."""
        return {f"{i:04d}": variable.value.numpy().copy() for i, variable in enumerate(self._optimizer.variables)}

    def restore_weights(self, arrays: Arrays) -> None:
        """Sets all weights to saved ones. Raises ResumeError if they are of another network."""
        _assign(self._weights, arrays, "weights")

    def restore_optimizer(self, arrays: Arrays) -> None:
        """Sets the optimizer's slots to saved ones. Raises ResumeError if they are of another optimizer."""
        _assign(self._optimizer.variables, arrays, "optimizer")

    def versions(self) -> dict[str, str]:
        """Returns the versions that decide how numbers are rounded."""
        return {"tensorflow": tf.__version__, "keras": keras.__version__}

    def _pixels_spec(self) -> tf.TensorSpec:
        size = self._config.data.image_size
        return tf.TensorSpec((None, size, size, 3), tf.uint8)

    def _probabilities(self, images: tf.Tensor) -> tf.Tensor:
        return self.network.model(tf.cast(images, tf.float32), training=False)

    def _train_step(self, images: tf.Tensor, labels: tf.Tensor, number: tf.Tensor) -> None:
        self._set_random_states(number)
        variables = self.network.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.network.logits(tf.cast(images, tf.float32), training=True)
            losses = self._loss(labels, logits) * tf.gather(self._loss_weights, labels)
            objective = tf.add_n([tf.reduce_mean(losses), *self.network.logits.losses])
            scaled = self._optimizer.scale_loss(objective)
        gradients = tape.gradient(scaled, variables)
        self._optimizer.apply(gradients, variables)
        # A value that is once not finite stays so until it is read, however seldom that is.
        self._objective.assign(objective + 0.0 * self._objective)
        self._add_to_sums(labels, logits)

    def _loss(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        smoothing = self._config.train.label_smoothing
        targets = tf.one_hot(labels, self._classes) * (1 - smoothing) + smoothing / self._classes
        return tf.nn.softmax_cross_entropy_with_logits(targets, logits)

    def _add_to_sums(self, labels: tf.Tensor, logits: tf.Tensor) -> None:
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        hits = tf.equal(tf.argmax(logits, axis=1), labels)
        hits5 = tf.math.in_top_k(labels, logits, min(5, self._classes))
        sums = [tf.reduce_sum(tf.cast(x, tf.float64)) for x in (loss, hits, hits5, tf.ones_like(labels))]
        self._sums.assign_add(tf.stack(sums))

    def _set_random_states(self, number: tf.Tensor) -> None:
        """Gives each random layer its own state, a function of the run's seed and the step."""
        seed = self._config.train.seed
        for place, state in enumerate(self._random_states):
            own = np.random.SeedSequence((seed, place)).generate_state(1, np.uint32)[0]
            state.assign(tf.stack([tf.constant(own, tf.uint32), tf.cast(number, tf.uint32)]))


_POLICIES = {"none": "float32", "float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}
_OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "rmsprop": keras.optimizers.RMSprop,
    "sgd": lambda learning_rate: keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True),
}


def _assign(variables: list[Any], arrays: Arrays, what: str) -> None:
    expected = [tuple(variable.shape) for variable in variables]
    found = [arrays[name].shape for name in sorted(arrays)]
    if expected != found:
        raise ResumeError(
            f"checkpoint: its {what} ({len(found)} arrays) do not fit this network ({len(expected)} arrays). "
            f"They were saved by other settings or another version of Keras."
        )
    for variable, name in zip(variables, sorted(arrays), strict=True):
        variable.assign(arrays[name])
