"""Matrix-product FLOPs of a function, counted in its jaxpr, scope by scope.

1. Trace the function with abstract arguments; nothing is computed.
2. A product of [.., m, k] and [.., k, n] counts 2·m·k·n times its batch, a scan
   counts its length times its body, a branch its dearest case.
3. A kernel of ours is not looked into: it is one of two branches, of which the
   other does the same with plain products.
4. Elementwise work is left out: the usual convention, and in a transformer
   about one per cent.

XLA's own count takes a scan's body once, however long the scan is.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.extend.core import jaxprs_in_params

from marjax.arrays import token_dtype
from marjax.model import ModelConfig, draw, param_shapes


def count(function: Callable, *args) -> int:
  """FLOPs of one call; `args` may be `jax.ShapeDtypeStruct`s.

  Raises:
    ValueError: a loop whose length is not known before it runs.
  """
  return by_scope(function, *args).total()


@functools.lru_cache(maxsize=8)
def training_flops(config: ModelConfig) -> float:
  """Matrix-product FLOPs of one training image, forward and backward.

  The backward pass counts twice the forward; recomputation does not count.
  """
  batch = config.backbone.batch_multiple
  c = config.backbone

  def loss(params, tokens):
    image_keys = jax.random.split(jax.random.key(0), batch)
    draws = draw(config, image_keys, c.condition.nothing(batch))
    return config.build().apply({"params": params}, tokens, draws)["loss"]

  params = nn.unbox(param_shapes(config))
  shape = (batch, c.num_tokens, *c.token_shape)
  tokens = jax.ShapeDtypeStruct(shape, token_dtype(c.num_codes))
  return 3 * count(loss, params, tokens) / batch


def by_scope(function: Callable, *args) -> Counter[str]:
  """`count`, by the scope that `jax.named_scope` or linen gives a product.

  Scopes are joined by slashes, the outermost first.
  """
  return _count(jax.make_jaxpr(function)(*args).jaxpr, "")


def _count(jaxpr: Any, outer: str) -> Counter[str]:
  found = Counter()
  for equation in jaxpr.eqns:
    found.update(_count_equation(equation, outer))
  return found


def _count_equation(equation: Any, outer: str) -> Counter[str]:
  name, params = equation.primitive.name, equation.params
  scope = f"{outer}/{equation.source_info.name_stack}"
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contracted)
    return Counter(
      {scope: 2 * depth * math.prod(equation.outvars[0].aval.shape)}
    )
  if name.startswith("conv_general"):
    kernel = equation.invars[1].aval.shape
    outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
    per_output = math.prod(kernel) // outputs
    return Counter(
      {scope: 2 * per_output * math.prod(equation.outvars[0].aval.shape)}
    )
  if name == "pallas_call":
    return Counter()
  inner = [_count(jaxpr, scope) for jaxpr in jaxprs_in_params(params)]
  if name == "cond":
    return max(inner, key=Counter.total)
  found = sum(inner, Counter())
  if name == "while" and found:
    raise ValueError(
      "a while loop holds matrix products; expected loops of known length:"
      " write it as a scan to count it."
    )
  times = params["length"] if name == "scan" else 1
  return Counter({scope: times * number for scope, number in found.items()})
