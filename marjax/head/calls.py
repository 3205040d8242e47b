"""What a head is called with, checked before anything is traced of it.

1. z is [*batch, W], targets are [*batch, *token], keys and draws are of the
   same batch. Targets are floats, or codes if the config has `num_codes`.
2. Arrays may be traced by the caller's `jax.jit`: of those shape and type are
   checked; of others also that they are finite, and that codes are codes.
3. Parameters of another head would be noticed deep inside, or not at all: their
   shapes are compared with those that `init` gives.

`loss` and `sample` decorate the methods of that name; a head is a linen module
with a `config` that has `token_shape`, `num_codes`, `noise_shape`, `Settings`
and `draw`, and class attributes `has_random_loss` and `has_random_samples`. All
raise ValueError.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from marjax import keys, protocols
from marjax.arrays import (
  check_shapes,
  checked,
  count,
  instance,
  is_traced,
  numbers,
  real,
  shaped,
  shapes_of,
  shown,
)
from marjax.head.noise import check_shape
from marjax.schema import check

TARGETS = "[*batch, D], a token for each vector z"
CODES = "[*batch], a code for each vector z"


def vectors(value: Any, name: str) -> Any:
  """Floats [*batch, W]."""
  expected = "[*batch, W], vectors of any model"
  value = shaped(value, name, expected)
  check(
    value.ndim >= 1, f"{name} has shape {value.shape}; expected {expected}."
  )
  return value


def tokens(value: Any, name: str) -> Any:
  """Floats [*batch, D]."""
  return shaped(value, name, TARGETS)


def codes(value: Any, name: str) -> Any:
  """Integers [*batch]."""
  if not hasattr(value, "shape"):
    value = numbers(value, name, f"integers, {CODES}")
  check(
    jnp.issubdtype(value.dtype, jnp.integer),
    f"{name} is {shown(value)}; expected integers, {CODES}.",
  )
  return value


def token_weights(value: Any, name: str) -> Any:
  """Floats [*batch], or None."""
  words = "[*batch], one for each token, or None"
  return None if value is None else shaped(value, name, words)


noise = instance(
  protocols.Noise, "KeyedNoise or RecordedNoise, or None and a key"
)


def temperature(value: Any, name: str) -> Any:
  """A finite number, 0 or more; perhaps traced."""
  real(value, name)
  check(
    is_traced(value) or 0 <= float(np.asarray(value)) < math.inf,
    f"{name} is {shown(value)}; expected a finite number, 0 or more.",
  )
  return value


def guidance(value: Any, name: str) -> Any:
  """(vectors of the unconditional pass, scale), or None."""
  if value is None:
    return None
  check(
    isinstance(value, tuple) and len(value) == 2,
    f"{name} is {shown(value)}; expected a pair: the z of the unconditional"
    " pass, and the scale.",
  )
  return (
    vectors(value[0], f"{name}[0]"),
    temperature(value[1], f"{name}[1], the scale,"),
  )


def _of_loss(given: Mapping[str, Any]) -> None:
  """Compares the arguments of a head's `loss`."""
  head, z, draws = given["self"], given["z"], given["draws"]
  _check_params(head, z)
  batch = z.shape[:-1]
  check_shape(given["target"], "target", (*batch, *head.config.token_shape))
  if head.config.num_codes:
    _check_codes(given["target"], head.config.num_codes)
  if given["weights"] is not None:
    check_shape(given["weights"], "weights", batch)
  if head.has_random_loss:
    _check_random(given["key"], draws, "draws", batch)
  if draws is not None:
    _check_draws(head.config, draws, batch)


def _of_sample(given: Mapping[str, Any]) -> None:
  """Compares the arguments of a head's `sample`."""
  head, z, noise = given["self"], given["z"], given["noise"]
  settings = given["settings"]
  _check_params(head, z)
  batch, wanted = z.shape[:-1], head.config.Settings
  is_walk = isinstance(settings, type(wanted().walk()))
  check(
    settings is None or is_walk or isinstance(settings, wanted),
    f"settings is {shown(settings)}; expected {wanted.__name__}, such as"
    f" {wanted.__name__}(num_steps={wanted().num_steps}), or None.",
  )
  if given["guidance"] is not None:
    check_shape(given["guidance"][0], "guidance[0]", z.shape)
  if head.has_random_samples:
    _check_random(given["key"], noise, "noise", batch)
  if noise is not None:
    steps = wanted().num_steps if settings is None else _num_steps(settings)
    noise.check(batch, head.config.noise_shape, steps, "noise")


def loss(method: Callable) -> Callable:
  """Decorates a head's `loss`; its config says what targets are."""
  of_floats, of_codes = (
    checked(
      _of_loss,
      key=keys.check_key,
      z=vectors,
      target=target,
      weights=token_weights,
    )(method)
    for target in (tokens, codes)
  )

  @functools.wraps(method)
  def call(self, *args, **kwargs):
    is_coded = self.config.num_codes > 0
    return (of_codes if is_coded else of_floats)(self, *args, **kwargs)

  return call


sample = checked(
  _of_sample,
  key=keys.check_key,
  z=vectors,
  noise=noise,
  temperature=temperature,
  guidance=guidance,
)


def _of_likelihood(given: Mapping[str, Any]) -> None:
  """Compares the arguments of a head's `log_likelihood`."""
  head, z = given["self"], given["z"]
  _check_params(head, z)
  shape = (*z.shape[:-1], *head.config.token_shape)
  check_shape(given["target"], "target", shape)


def _some(value: Any, name: str) -> int:
  """An integer, 1 or more."""
  check(value is not None, f"{name} is None; expected 1 or more.")
  return count(value, name)


likelihood = checked(_of_likelihood, z=vectors, target=tokens, num_steps=_some)


def _num_steps(settings: Any) -> int:
  """Evaluations of the network, by settings or by their walk."""
  if hasattr(settings, "num_steps"):
    return settings.num_steps
  leaves = jax.tree.leaves(settings)
  return len(leaves[0]) if leaves else 1


@functools.lru_cache(maxsize=64)
def _shapes(head: nn.Module, width: int) -> dict[str, tuple[int, ...]]:
  """Of the head's parameters, for z of that width."""
  z = jax.ShapeDtypeStruct((1, width), "float32")
  dtype = "int32" if head.config.num_codes else "float32"
  target = jax.ShapeDtypeStruct((1, *head.config.token_shape), dtype)
  key = jax.eval_shape(lambda: jax.random.key(0))
  # One row cannot be split over the devices of the caller's mesh.
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
    fresh = jax.eval_shape(
      lambda key, z, target: head.init(key, z, target, key=key), key, z, target
    )
  return shapes_of(nn.unbox(fresh["params"]))


def _check_params(head: nn.Module, z: Any) -> None:
  """Compares a head's parameters with those that init gives for this z."""
  if head.is_initializing():
    return
  params = nn.unbox(head.variables.get("params", {}))
  alone = head.clone(parent=None, name=None)
  name = f"a {type(head).__name__} for z of {z.shape[-1]} numbers"
  check_shapes(params, _shapes(alone, z.shape[-1]), name)


def _check_codes(target: Any, num_codes: int) -> None:
  """Codes that are known lie in 0 .. num_codes - 1."""
  if is_traced(target) or not getattr(target, "is_fully_addressable", True):
    return
  array = np.asarray(target)
  for at in np.argwhere((array < 0) | (array >= num_codes))[:1].tolist():
    raise ValueError(
      f"target{at or ''} is {array[tuple(at)]}; expected codes 0 .."
      f" {num_codes - 1}, of a tokenizer of the head's {num_codes} codes."
    )


def _check_draws(config: Any, draws: Any, batch: tuple) -> None:
  """Recorded draws are as `config.draw` makes them, of any number R."""
  row_keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
  expected = jax.eval_shape(config.draw, row_keys)
  check(
    type(draws) is type(expected),
    f"draws is {shown(draws)}; expected {type(expected).__name__}, or None and"
    " a key.",
  )
  for (path, leaf), like in zip(
    jax.tree_util.tree_leaves_with_path(draws),
    jax.tree.leaves(expected),
    strict=True,
  ):
    repeats = np.shape(leaf)[len(batch) : len(batch) + 1]
    shape = (*batch, *repeats, *like.shape[len(batch) + 1 :])
    check_shape(leaf, f"draws{jax.tree_util.keystr(path)}", shape)


def _check_random(key: Any, recorded: Any, name: str, batch: tuple) -> None:
  """There is one key, or one for each vector, or a recording: one of them."""
  check(
    key is not None or recorded is not None,
    f"key is missing; expected a typed key, as jax.random.key(0) makes, or"
    f" {name}=.",
  )
  check(
    key is None or recorded is None,
    f"key and {name} are both there; give one of them.",
  )
  check(
    key is None or key.shape in ((), batch),
    f"key has shape {np.shape(key)}; expected one key, or one for each vector,"
    f" {batch}.",
  )
