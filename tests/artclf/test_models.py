"""Networks: what goes in, what comes out, what is frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from artclf.config import TrainConfig
from artclf.errors import ConfigError
from artclf.models import BACKBONES, Network, build


def network(classes: int = 4, **settings: Any) -> Network:
    config = TrainConfig.from_settings({name.replace("__", "."): value for name, value in settings.items()})
    return build(config.model, classes, config.data.image_size, config.data.colour)


def pixels(size: int = 32, count: int = 3) -> Any:
    return np.random.default_rng(0).integers(0, 256, size=(count, size, size, 3), dtype=np.uint8)


def layer_kinds(model: keras.Model) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def test_a_network_takes_rgb_bytes_and_gives_probabilities() -> None:
    model = network(model__name="cnn_small", data__image_size=32).model
    probabilities = model.predict_on_batch(pixels())
    assert probabilities.shape == (3, 4)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_cnn_tiny_is_the_first_network_of_the_sources() -> None:
    model = network(model__name="cnn_tiny", data__image_size=150, classes=5).model
    convolutions = [layer.filters for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    dense = [layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert convolutions == [32, 64]
    assert dense == [64, 128, 5]
    assert "Dropout" not in layer_kinds(model)


def test_cnn_small_is_the_second_network_of_the_sources() -> None:
    model = network(model__name="cnn_small", data__image_size=150, classes=5).model
    convolutions = [layer.filters for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    dense = [layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    dropouts = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert convolutions == [32, 32, 64]
    assert dense == [128, 64, 5]
    assert dropouts == [0.2] * 5


def test_cnn_wide_pools_and_normalises_after_each_rising_block() -> None:
    model = network(model__name="cnn_wide", model__filters=[8, 16], data__image_size=32).model
    kinds = layer_kinds(model)
    assert kinds.count("MaxPooling2D") == kinds.count("BatchNormalization") == 2
    assert "GlobalAveragePooling2D" in kinds


def test_a_head_is_built_as_listed() -> None:
    head = [{"units": 12, "batch_norm": True, "activation": "tanh"}, 6]
    model = network(model__name="mobilenet", model__alpha=0.25, model__head=head, data__image_size=32).model
    after = layer_kinds(model)[layer_kinds(model).index("GlobalAveragePooling2D") + 1 :]
    assert after == ["Dense", "BatchNormalization", "Activation", "Dense", "Activation", "Dense", "Softmax"]


def test_l2_falls_on_the_dense_kernels_of_the_head() -> None:
    plain = network(model__name="mobilenet", model__alpha=0.25, data__image_size=32)
    weighed = network(model__name="mobilenet", model__alpha=0.25, model__l2=0.01, data__image_size=32)
    assert len(plain.logits.losses) == 0
    assert len(weighed.logits.losses) == 1


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("vgg16", "vgg16"),
        ("inception_v3", "inception_v3"),
        ("resnet50", "resnet50"),
        ("resnet50_v2", "resnet_v2"),
        ("mobilenet", "mobilenet"),
        ("mobilenet_v2", "mobilenet_v2"),
        ("mobilenet_v3_small", "mobilenet_v3"),
        ("efficientnet_b0", "efficientnet"),
        ("efficientnet_v2_b0", "efficientnet_v2"),
        ("convnext_tiny", "convnext"),
    ],
)
def test_a_backbone_gets_the_pixels_that_keras_would_give_it(name: str, module: str) -> None:
    from artclf.models import _scaled

    images = pixels(size=8).astype(np.float32)
    inputs = keras.Input((8, 8, 3))
    ours = keras.Model(inputs, _scaled(keras.layers.Identity()(inputs), BACKBONES[name].scaling))
    expected = getattr(keras.applications, module).preprocess_input(images.copy())
    assert np.allclose(ours.predict_on_batch(images), expected, atol=1e-4)


def test_grey_pixels_are_three_equal_channels_of_luma() -> None:
    from artclf.models import _grey

    inputs = keras.Input((8, 8, 3))
    images = pixels(size=8).astype(np.float32)
    grey = keras.Model(inputs, _grey(inputs)).predict_on_batch(images)
    luma = images @ np.array([0.299, 0.587, 0.114], np.float32)
    assert np.allclose(grey, np.repeat(luma[..., None], 3, axis=-1), atol=1e-3)


@pytest.mark.parametrize(("trainable", "expected"), [("none", 0), (2, 2), ("all", None)])
def test_trainable_frees_none_the_last_or_all_layers_of_the_backbone(trainable: Any, expected: int | None) -> None:
    net = network(model__name="mobilenet", model__alpha=0.25, data__image_size=32)
    assert net.backbone is not None
    net.set_trainable(trainable)
    free = [layer for layer in net.backbone.layers if layer.trainable]
    assert len(free) == (len(net.backbone.layers) if expected is None else expected)
    assert len(net.model.trainable_variables) >= 2  # the classes' own layer is always free


def test_freezing_and_freeing_again_leaves_all_layers_free() -> None:
    net = network(model__name="mobilenet", model__alpha=0.25, data__image_size=32)
    assert net.backbone is not None
    before = len(net.model.trainable_variables)
    for trainable in ("none", 3, "all"):
        net.set_trainable(trainable)
    assert len(net.model.trainable_variables) == before


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "alpha", "file"),
    [
        ("mobilenet", 0.75, "mobilenet_7_5_224_tf_no_top.h5"),
        ("mobilenet_v2", 1.0, "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"),
    ],
)
def test_a_file_of_imagenet_weights_is_loaded(shared_data: Path, name: str, alpha: float, file: str) -> None:
    path = shared_data / "weights" / file
    net = network(model__name=name, model__alpha=alpha, model__weights=str(path))
    random = network(model__name=name, model__alpha=alpha)
    assert net.backbone is not None and random.backbone is not None
    assert not np.allclose(net.backbone.get_weights()[0], random.backbone.get_weights()[0])


def test_weights_of_another_network_are_refused_with_the_setting_named(tmp_path: Path) -> None:
    other = keras.applications.MobileNet(weights=None, include_top=False, alpha=0.5, input_shape=(32, 32, 3))
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ConfigError, match=r"model\.weights .* cannot be loaded into mobilenet with alpha 0.25"):
        network(
            model__name="mobilenet",
            model__alpha=0.25,
            model__weights=str(tmp_path / "other.weights.h5"),
            data__image_size=32,
        )


def test_an_image_too_small_for_the_network_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size"):
        network(model__name="cnn_small", data__image_size=12)
