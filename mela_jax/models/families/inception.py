"""InceptionV3, number for number that of keras.applications.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016
(arXiv:1512.00567). As in Keras: convolutions without bias, batch norm without gamma,
and the averages of the pooling branches leave the padding out. Several convolutions
take no padding, so that the maps are smaller than a fraction of the image: 5 x 5 at 224
pixels, 8 x 8 at 299.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.convolution import max_pool
from mela_jax.models.layers import Conv, norm_layer, scale_to_one
from mela_jax.models.outputs import LAST_MAP
from mela_jax.models.registry import KerasLayer, KerasWeights, Network


class Part(NamedTuple):
    """A convolution with batch norm and ReLU; of stride 2 without padding."""

    filters: int
    height: int
    width: int
    strides: int = 1


class Fork(NamedTuple):
    """Convolutions of the same map, side by side; always at a branch's end."""

    parts: tuple[Part, ...]


Branch = tuple[Part | Fork, ...]


class Mixed(NamedTuple):
    """Branches side by side; another pools first, at a stride of 2 the maximum."""

    branches: tuple[Branch, ...]
    pooled: Branch


def _block_a(pooled: int) -> Mixed:
    return Mixed(
        (
            (Part(64, 1, 1),),
            (Part(48, 1, 1), Part(64, 5, 5)),
            (Part(64, 1, 1), Part(96, 3, 3), Part(96, 3, 3)),
        ),
        (Part(pooled, 1, 1),),
    )


def _block_b(n: int) -> Mixed:
    return Mixed(
        (
            (Part(192, 1, 1),),
            (Part(n, 1, 1), Part(n, 1, 7), Part(192, 7, 1)),
            (
                Part(n, 1, 1),
                Part(n, 7, 1),
                Part(n, 1, 7),
                Part(n, 7, 1),
                Part(192, 1, 7),
            ),
        ),
        (Part(192, 1, 1),),
    )


_FORK = Fork((Part(384, 1, 3), Part(384, 3, 1)))
_BLOCK_C = Mixed(
    (
        (Part(320, 1, 1),),
        (Part(384, 1, 1), _FORK),
        (Part(448, 1, 1), Part(384, 3, 3), _FORK),
    ),
    (Part(192, 1, 1),),
)

# Each with the padding, and whether a 3x3 max pooling of stride 2 follows.
STEM = (
    (Part(32, 3, 3, 2), "VALID", False),
    (Part(32, 3, 3), "VALID", False),
    (Part(64, 3, 3), "SAME", True),
    (Part(80, 1, 1), "VALID", False),
    (Part(192, 3, 3), "VALID", True),
)
BLOCKS = (
    *(_block_a(32), _block_a(64), _block_a(64)),
    Mixed(
        (
            (Part(384, 3, 3, 2),),
            (Part(64, 1, 1), Part(96, 3, 3), Part(96, 3, 3, 2)),
        ),
        (),
    ),
    *(_block_b(128), _block_b(160), _block_b(160), _block_b(192)),
    Mixed(
        (
            (Part(192, 1, 1), Part(320, 3, 3, 2)),
            (Part(192, 1, 1), Part(192, 1, 7), Part(192, 7, 1), Part(192, 3, 3, 2)),
        ),
        (),
    ),
    *(_BLOCK_C, _BLOCK_C),
)
# The last blocks of the strides 8 and 16.
_ENDS = {2: "stride_8", 7: "stride_16"}


class InceptionV3(nn.Module):
    """The body: image to a map of 2048 channels."""

    dtype: Any = jnp.float32
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map float RGB [B, H, W, 3] in [0, 255], 75 pixels or more, to maps."""
        norm = norm_layer(self, train=train, use_scale=False)

        def conv(x: jax.Array, part: Part, name: str, padding: str) -> jax.Array:
            x = Conv(
                part.filters,
                (part.height, part.width),
                strides=part.strides,
                padding=padding,
                dtype=self.dtype,
                name=f"{name}_conv",
            )(x)
            return jax.nn.relu(norm(name=f"{name}_bn")(x))

        def follow(x: jax.Array, branch: Branch, name: str) -> list[jax.Array]:
            """Return the maps that a branch ends in."""
            found = [x]
            for index, part in enumerate(branch):
                parts = part.parts if isinstance(part, Fork) else (part,)
                names = [f"{name}_{index}{'ab'[n] * (len(parts) > 1)}" for n in (0, 1)]
                found = [
                    conv(x, p, n, "SAME" if p.strides == 1 else "VALID")
                    for p, n in zip(parts, names, strict=False)
                ]
                x = found[0]
            return found

        x = scale_to_one(image.astype(jnp.float32))
        for index, (part, padding, pools) in enumerate(STEM):
            x = conv(x, part, f"stem_{index}", padding)
            if pools:
                x = max_pool(x, window=3, strides=2, padding=0)
        maps = {}
        for index, block in enumerate(BLOCKS):
            found = [
                end
                for number, branch in enumerate(block.branches)
                for end in follow(x, branch, f"mixed_{index:02d}_branch_{number}")
            ]
            if block.pooled:
                pooled = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
            else:
                pooled = max_pool(x, window=3, strides=2, padding=0)
            found += follow(pooled, block.pooled, f"mixed_{index:02d}_pooled")
            x = jnp.concatenate(found, axis=-1)
            if index in _ENDS:
                maps[_ENDS[index]] = x
        return {**maps, LAST_MAP: x}


def _keras_layers() -> Iterator[KerasLayer]:
    """Yield the layers with weights of Keras's InceptionV3, in Keras's order.

    They are numbered as they are made, and ordered by their distance from the output.
    """
    number = 0
    found: list[tuple[int, int, int, str, str]] = []

    def add(block: int, distance: int, name: str) -> None:
        nonlocal number
        for kind, part in (("conv2d", "conv"), ("batch_normalization", "bn")):
            found.append((block, -distance, number, kind, f"{name}_{part}"))
            distance -= 1
        number += 1

    for index in range(len(STEM)):
        add(index - len(STEM), 0, f"stem_{index}")
    for index, block in enumerate(BLOCKS):
        branches = [*block.branches, block.pooled]
        names = [*(f"branch_{n}" for n in range(len(branches) - 1)), "pooled"]
        for name, branch in zip(names, branches, strict=True):
            # What joins the ends of a fork is a layer more.
            forked = any(isinstance(part, Fork) for part in branch)
            for place, part in enumerate(branch):
                # A ReLU follows on each.
                distance = 3 * (len(branch) - place) + forked
                for letter in "ab" if isinstance(part, Fork) else ("",):
                    add(index, distance, f"mixed_{index:02d}_{name}_{place}{letter}")
    for *_, number, kind, name in sorted(found):
        yield KerasLayer(f"{kind}_{number}" if number else kind, kind, (name,))


NETWORKS = {
    "inception_v3": Network(
        InceptionV3,
        weights=KerasWeights(
            tuple(_keras_layers()),
            "tensorflow/keras-applications/inception_v3/"
            "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "bcbd6486424b2319ff4ef7d526e38f63",
        ),
        smallest=75,
    )
}
