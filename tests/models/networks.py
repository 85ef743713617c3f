"""What the tests of networks share: variables without XLA, pictures, comparison."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mela_jax.models.head import Classifier
from mela_jax.models.outputs import Outputs


def blank_variables(model: Classifier, *, size: int = 96) -> dict[str, Any]:
    """Make variables that are all NaN: what a loader forgets to fill shows."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda key, image: model.init(key, image, train=False),
        jax.random.key(0),
        image,
    )
    return jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, np.float32), shapes)


def blank_with_head(model: Classifier, *, size: int = 96) -> dict[str, Any]:
    """Make variables that are NaN but for a random logits layer."""
    variables = blank_variables(model, size=size)
    rng = np.random.default_rng(5)
    logits = {
        name: rng.normal(0, leaf.shape[0] ** -0.5, leaf.shape).astype(np.float32)
        for name, leaf in variables["params"]["head"]["logits"].items()
    }
    params = variables["params"] | {"head": {"logits": logits}}
    return variables | {"params": params}


def jit_apply(model: Classifier) -> Callable[..., Outputs]:
    """Compile the function of variables and images."""
    return jax.jit(lambda v, x: model.apply(v, x, train=False))


def noise(size: int, *, num: int = 4) -> np.ndarray:
    """Draw float32 [num, size, size, 3] in [0, 255], smooth to rough."""
    rng = np.random.default_rng(0)
    images = []
    for index in range(num):
        grain = size if index == 0 else 2 ** (index + 1)
        small = Image.fromarray(rng.integers(0, 256, (grain, grain, 3), np.uint8))
        images.append(np.asarray(small.resize((size, size))))
    return np.stack(images).astype(np.float32)


def photographs(shared: Path, size: int, *, num: int = 4) -> np.ndarray:
    """Read centre squares of real images, float32 [num, size, size, 3]."""
    folder = shared / "data" / "ham10000_200x150" / "HAM10000_images_part_1"
    images = []
    for path in sorted(folder.glob("*.jpg"))[:: 1000 // num][:num]:
        image = Image.open(path).convert("RGB")
        left, top = (image.width - image.height) // 2, 0
        square = image.crop((left, top, left + image.height, top + image.height))
        images.append(np.asarray(square.resize((size, size))))
    return np.stack(images).astype(np.float32)


def random_normalisation(
    rng: np.random.Generator, channels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw gamma, beta, moving mean and moving variance that matter and stay sane."""
    return (
        rng.uniform(0.6, 1.4, channels).astype(np.float32),
        rng.normal(0.0, 0.3, channels).astype(np.float32),
        rng.normal(0.0, 0.3, channels).astype(np.float32),
        rng.uniform(0.5, 2.0, channels).astype(np.float32),
    )


def assert_same(actual: Any, expected: Any) -> None:
    """Compare to 1e-4 of the largest value, and demand that the inputs matter."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = np.abs(expected).max()
    spread = np.abs(expected - expected.mean(axis=0)).max()
    assert spread > 20 * 1e-4 * scale, "the outputs hardly depend on the image"
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * scale)


def assert_outputs(outputs: Outputs, variables: dict[str, Any], maps: list) -> None:
    """Compare all that a network returns with the maps at strides of 4 to 32."""
    head = variables["params"]["head"]["logits"]
    features = np.mean(maps[-1], axis=(1, 2))
    assert_same(outputs.features, features)
    assert_same(outputs.logits, features @ head["kernel"] + head["bias"])
    names = ("stride_4", "stride_8", "stride_16", "last")
    for name, expected in zip(names, maps, strict=True):
        assert_same(outputs.maps[name], expected)
