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
    Nothing is compiled or run, and `variables` may be `jax.ShapeDtypeStruct`s.
    """
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    # The CPU's fast depthwise lowering has no convolution in it to be counted.
    with plain_convolutions():
        program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(
            variables, image
        )
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
    result: Any = equation.outvars[0].aval
    operands: Any = [variable.aval for variable in equation.invars]
    multiply_adds = 0
    if equation.primitive.name == "conv_general_dilated":
        kernel = operands[1].shape
        out_channels = equation.params["dimension_numbers"].rhs_spec[0]
        # The kernel's input dimension is already channels per group.
        multiply_adds = result.size * math.prod(kernel) // kernel[out_channels]
    elif equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        summed = math.prod(operands[0].shape[axis] for axis in contracted)
        multiply_adds = result.size * summed
    return 2 * multiply_adds
