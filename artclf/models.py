"""From settings to a Keras network that takes RGB pixels of 0..255 and gives probabilities.

Scaling, greyscale and all else a picture needs are layers of the network, made of stock Keras
layers, so a saved model works in plain Keras without artclf.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
from keras import layers

from artclf.cache import local_file
from artclf.config import ALPHA_MODELS, OWN_MODELS, HeadLayer, ModelConfig, Trainable, own_defaults
from artclf.errors import ConfigError

Scaling = Literal["unit", "signed", "caffe", "own"]


@dataclass(frozen=True)
class Backbone:
    """A network of keras.applications and the pixels that it was trained on."""

    constructor: str
    scaling: Scaling


# The scaling of each is that of its module's preprocess_input; "own" ones scale inside themselves.
BACKBONES = {
    "vgg16": Backbone("VGG16", "caffe"),
    "vgg19": Backbone("VGG19", "caffe"),
    "inception_v3": Backbone("InceptionV3", "signed"),
    "resnet50": Backbone("ResNet50", "caffe"),
    "resnet50_v2": Backbone("ResNet50V2", "signed"),
    "mobilenet": Backbone("MobileNet", "signed"),
    "mobilenet_v2": Backbone("MobileNetV2", "signed"),
    "mobilenet_v3_small": Backbone("MobileNetV3Small", "own"),
    "mobilenet_v3_large": Backbone("MobileNetV3Large", "own"),
    "efficientnet_b0": Backbone("EfficientNetB0", "own"),
    "efficientnet_v2_b0": Backbone("EfficientNetV2B0", "own"),
    "convnext_tiny": Backbone("ConvNeXtTiny", "own"),
}

# Mean of ImageNet's blue, green and red, as keras.applications.imagenet_utils subtracts it ("caffe" mode).
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
# Luma weights of ITU-R BT.601, those of Pillow's and TensorFlow's conversion to grey.
_LUMA_RGB = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Network:
    """A classifier and its parts.

    Attributes:
        model: (B, S, S, 3) pixels of 0..255 → (B, classes) probabilities; what is saved.
        logits: the same layers without the softmax, for a loss that stays exact.
        backbone: the part that ``model.trainable`` freezes; None where all was built from scratch.
    """

    model: keras.Model
    logits: keras.Model
    backbone: keras.Model | None

    def set_trainable(self, trainable: Trainable) -> None:
        """Freezes the backbone, or frees all of it or its last N layers."""
        if self.backbone is None:
            return
        # Layer by layer: Keras does not hand a model's own flag down to layers that were set singly before.
        layers_free = {"none": 0, "all": len(self.backbone.layers)}
        free_from = len(self.backbone.layers) - (trainable if isinstance(trainable, int) else layers_free[trainable])
        self.backbone.trainable = True
        for place, layer in enumerate(self.backbone.layers):
            layer.trainable = place >= free_from


def build(config: ModelConfig, classes: int, image_size: int, colour: Literal["rgb", "grey"] = "rgb") -> Network:
    """Returns the network that the settings describe, its weights drawn from Keras's global seed.

    Raises:
        ConfigError: if the weights cannot be loaded or the network does not fit the image size.
    """
    own = own_defaults(config.name)
    dropout = own["model.dropout"] if config.dropout is None else config.dropout
    pooling = config.pooling or own["model.pooling"]
    head = own["model.head"] if config.head is None else config.head
    l2 = keras.regularizers.L2(config.l2) if config.l2 else None

    pixels = keras.Input((image_size, image_size, 3), name="pixels")
    x = _grey(pixels) if colour == "grey" else pixels
    backbone = None
    try:
        if config.name in OWN_MODELS:
            x = _convolutions(config, layers.Rescaling(1 / 255, name="scale")(x), dropout, l2)
        else:
            backbone = _backbone(config, image_size)
            x = backbone(_scaled(x, BACKBONES[config.name].scaling))
        x = _pooled(x, pooling)
        if config.name == "cnn_small":
            x = _dense_stack(x, head, l2, dropout_after_each=dropout)
        else:
            x = _dense_stack(x, head, l2)
            x = layers.Dropout(dropout, name="dropout")(x) if dropout else x
        logits = layers.Dense(classes, kernel_regularizer=l2, dtype="float32", name="logits")(x)
    except ValueError as error:
        where = f"model.name {config.name} at data.image_size {image_size}"
        raise ConfigError(f"{where}: cannot be built: {_first_line(error)}") from error
    probabilities = layers.Softmax(dtype="float32", name="probabilities")(logits)
    return Network(keras.Model(pixels, probabilities, name=config.name), keras.Model(pixels, logits), backbone)


def _grey(x: Any) -> Any:
    """Three equal channels of luma, as a fixed 1x1 convolution."""
    kernel = np.repeat(np.array(_LUMA_RGB, np.float32).reshape(1, 1, 3, 1), 3, axis=3)
    return _fixed_convolution(kernel, None, "grey")(x)


def _scaled(x: Any, scaling: Scaling) -> Any:
    if scaling == "signed":
        return layers.Rescaling(1 / 127.5, offset=-1, name="scale")(x)
    if scaling == "caffe":  # swap the channels and subtract a mean, as a fixed 1x1 convolution
        kernel = np.eye(3, dtype=np.float32)[::-1].reshape(1, 1, 3, 3)
        return _fixed_convolution(kernel, -np.array(_CAFFE_MEAN_BGR, np.float32), "scale")(x)
    return x


def _fixed_convolution(kernel: Any, bias: Any, name: str) -> Any:
    return layers.Conv2D(
        3,
        1,
        use_bias=bias is not None,
        kernel_initializer=keras.initializers.Constant(kernel.tolist()),
        bias_initializer=keras.initializers.Constant(bias.tolist()) if bias is not None else "zeros",
        trainable=False,
        name=name,
    )


def _backbone(config: ModelConfig, image_size: int) -> keras.Model:
    constructor = getattr(keras.applications, BACKBONES[config.name].constructor)
    options = {"alpha": config.alpha} if config.name in ALPHA_MODELS else {}
    weights = None if config.weights == "none" else config.weights
    if weights not in (None, "imagenet"):
        weights = str(local_file(config.weights))
    try:
        with warnings.catch_warnings():  # of sizes other than ImageNet's, which are meant
            warnings.simplefilter("ignore", UserWarning)
            backbone = constructor(
                include_top=False, weights=weights, input_shape=(image_size, image_size, 3), name="backbone", **options
            )
    except Exception as error:
        if weights is None:
            raise
        raise ConfigError(
            f"model.weights {config.weights}: cannot be loaded into {config.name}"
            f"{f' with alpha {config.alpha}' if options else ''}: {_first_line(error)}"
            + (". Without a network, set model.weights to a file (.h5)" if weights == "imagenet" else "")
            + "."
        ) from error
    return backbone


def _convolutions(config: ModelConfig, x: Any, dropout: float, l2: Any) -> Any:
    """The convolution blocks of our own networks (FEATURES.md, table 1 and S4)."""
    if config.name == "cnn_wide":
        for filters in config.filters:
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_regularizer=l2)(x)
            x = layers.MaxPooling2D()(x)
            x = layers.BatchNormalization()(x)
        return x
    blocks = {"cnn_tiny": (32, 64), "cnn_small": (32, 32, 64)}[config.name]
    for filters in blocks:
        x = layers.Conv2D(filters, 3, activation="relu", kernel_regularizer=l2)(x)
        x = layers.MaxPooling2D()(x)
        if config.name == "cnn_small" and dropout:
            x = layers.Dropout(dropout)(x)
    return x


def _pooled(x: Any, pooling: str) -> Any:
    layer = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D, "flatten": layers.Flatten}
    return layer[pooling](name="pooling")(x)


def _dense_stack(x: Any, head: Any, l2: Any, dropout_after_each: float = 0.0) -> Any:
    for item in head:
        layer = HeadLayer(units=item) if isinstance(item, int) else item
        x = layers.Dense(layer.units, use_bias=not layer.batch_norm, kernel_regularizer=l2)(x)
        x = layers.BatchNormalization()(x) if layer.batch_norm else x
        x = layers.Activation(layer.activation)(x)
        x = layers.Dropout(dropout_after_each)(x) if dropout_after_each else x
    return x


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
