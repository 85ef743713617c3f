"""Size and arithmetic of a network: parameters and floating-point operations."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from mela_jax.models.convolution import plain_convolutions


def count_params(variables: Mapping[str, Any]) -> int:
    """Count every stored number: parameters and batch-norm statistics.

    That is what Keras calls total params, and what a float file holds.
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))


def count_flops(
    model: nn.Module, variables: Mapping[str, Any], *, image_size: int
) -> int:
    """Count the floating-point operations of scoring one square image.

    A multiply-add counts as two. Counted are convolutions and matrix products, from
    the traced program, windows over padding included; batch norm, activations and
    pooling are left out, as in the papers' tables (which give multiply-adds: half).
    Nothing is compiled or run.

    Args:
      model: module with `__call__(image, *, train)`.
      variables: its variables, as arrays or `jax.ShapeDtypeStruct`s.
      image_size: height and width of the image, in pixels.
    """
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)

    def score(variables: Mapping[str, Any], image: jax.Array) -> Any:
        return model.apply(variables, image, train=False)

    # The CPU's fast depthwise lowering has no convolution in it to be counted.
    with plain_convolutions():
        program = jax.make_jaxpr(score)(variables, image)
    return sum(_flops(equation) for equation in _equations(program.jaxpr))


def _equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Yield the equations of a program and of the functions it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if isinstance(value, core.ClosedJaxpr):
                yield from _equations(value.jaxpr)
            elif isinstance(value, core.Jaxpr):
                yield from _equations(value)


def _flops(equation: core.JaxprEqn) -> int:
    """Count 2 x multiply-adds of one equation."""
    size = math.prod(_shape(equation.outvars[0]))
    if equation.primitive.name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        out_channels = equation.params["dimension_numbers"].rhs_spec[0]
        # The kernel's input dimension is already channels per group.
        return 2 * size * math.prod(kernel) // kernel[out_channels]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = _shape(equation.invars[0])
        return 2 * size * math.prod(left[axis] for axis in contracted)
    return 0


def _shape(variable: core.Var | core.Literal) -> tuple[int, ...]:
    if not isinstance(variable.aval, jax.core.ShapedArray):
        raise TypeError(f"{variable} is not an array")
    return variable.aval.shape
