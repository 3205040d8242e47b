"""What a head is called with, checked before anything is traced of it.

1. z is [*batch, W], targets are [*batch, D], keys and draws are of the same
   batch; W is told by the head's own parameters.
2. Arrays may be traced by the caller's `jax.jit`: of those shape and type are
   checked; of others also that they are finite.
3. Parameters of another head would be found out deep inside, or not at all:
   their shapes are compared first.

All raise ValueError.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from marjax import keys
from marjax.arguments import instance, is_traced, real, shaped, shown
from marjax.head.noise import KeyedNoise, LossDraws, RecordedNoise
from marjax.head.reverse import ReverseSettings, Walk
from marjax.schema import check

TARGETS = "[*batch, D], a token for each vector z"


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


def token_weights(value: Any, name: str) -> Any:
  """Floats [*batch], or None."""
  words = "[*batch], one for each token, or None"
  return None if value is None else shaped(value, name, words)


loss_draws = instance(LossDraws, "LossDraws, or None and a key")
noise = instance(
  KeyedNoise | RecordedNoise,
  "KeyedNoise or RecordedNoise, or None and a key",
)
reverse_settings = instance(
  ReverseSettings | Walk,
  "marjax.ReverseSettings, such as ReverseSettings(num_steps=100), or None",
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


def of_loss(given: Mapping[str, Any]) -> None:
  """Compares the arguments of a head's `loss`."""
  head, z = given["self"], given["z"]
  _check_params(head, z)
  batch, dim = z.shape[:-1], head.config.token_dim
  _check_shape(given["target"], "target", (*batch, dim))
  if given["weights"] is not None:
    _check_shape(given["weights"], "weights", batch)
  draws = given["draws"]
  if head.is_random:
    _check_random(given["key"], draws, "draws", batch)
  if draws is not None:
    repeats = np.shape(draws.timesteps)[-1:]
    _check_shape(draws.timesteps, "draws.timesteps", (*batch, *repeats))
    _check_shape(draws.noise, "draws.noise", (*batch, *repeats, dim))


def of_sample(given: Mapping[str, Any]) -> None:
  """Compares the arguments of a head's `sample`."""
  head, z, noise = given["self"], given["z"], given["noise"]
  _check_params(head, z)
  batch, dim = z.shape[:-1], head.config.token_dim
  if given["guidance"] is not None:
    _check_shape(given["guidance"][0], "guidance[0]", z.shape)
  if head.is_random:
    _check_random(given["key"], noise, "noise", batch)
  if isinstance(noise, KeyedNoise):
    keys.check_key(noise.row_keys, "noise.row_keys")
    _check_shape(noise.row_keys, "noise.row_keys", batch)
  if isinstance(noise, RecordedNoise):
    _check_shape(noise.start, "noise.start", (*batch, dim))
    most = len(noise.steps)
    _check_shape(noise.steps, "noise.steps", (most, *batch, dim))
    steps = len((given["settings"] or ReverseSettings()).walk().timesteps)
    check(
      most >= steps,
      f"noise was recorded for {most} steps; expected {steps}, as the settings"
      " ask for.",
    )


def _check_params(head: nn.Module, z: Any) -> None:
  """Compares a head's parameters with its config, and z with them."""
  if head.is_initializing():
    return
  net, config = head.variables.get("params", {}).get("net", {}), head.config
  try:
    width, out = (
      nn.unbox(net[layer]["kernel"]).shape
      for layer in ("condition", "final_linear")
    )
    depth = sum(layer.startswith("blocks_") for layer in net)
    shape = (width[1], depth, out[1] // 2)
  except (KeyError, TypeError, AttributeError, IndexError):
    shape = None
  check(
    shape == (config.width, config.depth, config.token_dim),
    f"the parameters are not those of a head of width {config.width}, depth"
    f" {config.depth} and token_dim {config.token_dim}"
    + (f" but of {shape}" if shape else "")
    + "; expected what init gave for it, all of it.",
  )
  check(
    z.shape[-1] == width[0],
    f"z has shape {z.shape}; expected {width[0]} numbers in the last axis, as"
    " in the z that these parameters were made for.",
  )


def _check_shape(value: Any, name: str, shape: tuple) -> None:
  check(
    np.shape(value) == shape,
    f"{name} has shape {np.shape(value)}; expected {shape} beside this z.",
  )


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
