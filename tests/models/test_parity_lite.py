"""EfficientNet-Lite gives the numbers of a plain TensorFlow walk over the .npz."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow as tf

from mela_jax.models.pretrained import load_pretrained
from mela_jax.models.zoo import create_model
from tests.models.networks import (
    assert_outputs,
    blank_with_head,
    jit_apply,
    noise,
    photographs,
    random_normalisation,
)

SIZE = 96
# Kernel and stride of every block, written out rather than computed.
LITE0 = (
    "k3s1 k3s2 k3s1 k5s2 k5s1 k3s2 k3s1 k3s1 k5s1 k5s1 k5s1 k5s2 k5s1 k5s1 k5s1 k3s1"
)
LITE2 = (
    "k3s1 k3s2 k3s1 k3s1 k5s2 k5s1 k5s1 k3s2 k3s1 k3s1 k3s1 k5s1 k5s1 k5s1 k5s1 "
    "k5s2 k5s1 k5s1 k5s1 k5s1 k3s1"
)
BLOCKS = {"efficientnet_lite0": LITE0, "efficientnet_lite2": LITE2}

Arrays = Mapping[str, np.ndarray]


def reference(name: str, arrays: Arrays, images: np.ndarray) -> list[np.ndarray]:
    """Return the last map at each stride, by TensorFlow's own operations."""

    def norm(x: tf.Tensor, prefix: str) -> tf.Tensor:
        return tf.nn.batch_normalization(
            x,
            mean=arrays[f"{prefix}.running_mean"],
            variance=arrays[f"{prefix}.running_var"],
            offset=arrays[f"{prefix}.bias"],
            scale=arrays[f"{prefix}.weight"],
            variance_epsilon=1e-3,
        )

    def conv(x: tf.Tensor, prefix: str, stride: int = 1) -> tf.Tensor:
        kernel = np.moveaxis(arrays[f"{prefix}.weight"], (0, 1), (3, 2))
        return tf.nn.conv2d(x, kernel, stride, "SAME")

    def depthwise(x: tf.Tensor, prefix: str, stride: int) -> tf.Tensor:
        kernel = np.moveaxis(arrays[f"{prefix}.weight"], (0, 1), (2, 3))
        return tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], "SAME")

    x = tf.constant((images - 127) / 128, tf.float32)
    x = tf.nn.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    maps = {}
    for index, block in enumerate(BLOCKS[name].split()):
        prefix, inputs = f"_blocks.{index}", x
        kernel_size, stride = int(block[1]), int(block[3])
        assert arrays[f"{prefix}._depthwise_conv.weight"].shape[2] == kernel_size
        if index:
            x = tf.nn.relu6(norm(conv(x, f"{prefix}._expand_conv"), f"{prefix}._bn0"))
        x = depthwise(x, f"{prefix}._depthwise_conv", stride)
        x = tf.nn.relu6(norm(x, f"{prefix}._bn1"))
        x = norm(conv(x, f"{prefix}._project_conv"), f"{prefix}._bn2")
        if x.shape == inputs.shape:
            x = x + inputs
        maps[-(-images.shape[1] // x.shape[1])] = x
    maps[32] = tf.nn.relu6(norm(conv(x, "_conv_head"), "_bn1"))
    return [maps[stride].numpy() for stride in (4, 8, 16, 32)]


def torch_name(path: tuple[str, ...]) -> str:
    """Spell a variable's path as PyTorch does, independently of the loader."""
    *modules, leaf = path
    leaf = {"kernel": "weight", "scale": "weight", "bias": "bias"}.get(
        leaf, f"running_{leaf}"
    )
    inside = dict(expand="_bn0", depthwise="_bn1", project="_bn2")
    outside = dict(stem="_bn0", top="_bn1")
    module = modules[-1]
    if module.endswith("_bn"):
        names = inside if len(modules) == 2 else outside
        module = names[module.removesuffix("_bn")]
    else:
        module = {
            "stem_conv": "_conv_stem",
            "top_conv": "_conv_head",
            "depthwise": "_depthwise_conv",
        }.get(module, f"_{module}")
    block = f"_blocks.{int(modules[0].split('_')[1])}." if len(modules) == 2 else ""
    return f"{block}{module}.{leaf}"


def randomised(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Draw arrays with PyTorch's names and layout for a network's body."""
    rng = np.random.default_rng(3)
    arrays: dict[str, np.ndarray] = {}

    def walk(tree: Mapping[str, Any], path: tuple[str, ...]) -> None:
        if "kernel" in tree:
            k, _, inputs, outputs = tree["kernel"].shape
            kernel = rng.normal(
                0, np.sqrt(2 / (k * k * inputs)), (outputs, inputs, k, k)
            )
            arrays[torch_name((*path, "kernel"))] = kernel.astype(np.float32)
        elif "scale" in tree:
            values = random_normalisation(rng, tree["scale"].size)
            for leaf, value in zip(
                ("scale", "bias", "mean", "var"), values, strict=True
            ):
                arrays[torch_name((*path, leaf))] = value
        else:
            for module, below in tree.items():
                walk(below, (*path, module))

    walk(variables["params"]["body"], ())
    return arrays


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[dict[str, Any], Callable[..., Any]]]:
    """Blank variables (but for the head) and the jitted network, by name."""
    models = {name: create_model(name) for name in BLOCKS}
    return {
        n: (blank_with_head(model), jit_apply(model)) for n, model in models.items()
    }


def check(
    name: str, arrays: Arrays, file: Path, networks: Any, images: np.ndarray
) -> None:
    blank, apply = networks[name]
    variables = load_pretrained(name, blank, init=file)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    outputs = apply(variables, images)
    assert_outputs(outputs, blank, reference(name, arrays, images))


@pytest.mark.parametrize("name", BLOCKS)
def test_random_weights(name, networks, tmp_path):
    arrays = randomised(networks[name][0])
    file = tmp_path / "random.npz"
    # A PyTorch state dict also holds counters and a head, neither of which matters.
    np.savez(
        file,
        **arrays,
        **{"_bn0.num_batches_tracked": np.asarray(9), "_fc.bias": np.zeros(1000)},
    )
    check(name, arrays, file, networks, noise(SIZE))


@pytest.mark.parametrize("name", BLOCKS)
def test_imagenet_weights_on_real_images(name, networks, shared):
    file = shared / "weights" / f"{name}_imagenet.npz"
    if not file.is_file():
        pytest.skip(f"no pretrained weights: {file} is absent")
    with np.load(file, allow_pickle=False) as archive:
        arrays = dict(archive)
    images = photographs(shared, SIZE)
    check(name, arrays, file, networks, images)
    # Wrong input scaling or padding would leave the thousand classes near uniform.
    features = np.mean(reference(name, arrays, images)[-1], axis=(1, 2))
    scores = features @ arrays["_fc.weight"].T + arrays["_fc.bias"]
    assert jax.nn.softmax(scores).max(axis=-1).mean() > 0.1
