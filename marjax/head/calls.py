"""What a head is called with, checked before anything is traced of it.

1. z is [*batch, W], targets are [*batch, D], keys and draws are of the same
   batch; W is told by the head's own parameters.
2. Arrays may be traced by the caller's `jax.jit`: of those shape and type are
   checked; of others also that they are finite.
3. Parameters of another head would be found out deep inside, or not at all:
   their shapes are compared first.

All raise ValueError.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from marjax import keys
from marjax.arguments import is_traced, real, shaped, shown
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


def loss_draws(value: Any, name: str) -> LossDraws | None:
  """`LossDraws` or None."""
  check(
    value is None or isinstance(value, LossDraws),
    f"{name} is {shown(value)}; expected LossDraws, or None and a key.",
  )
  return value


def noise(value: Any, name: str) -> Any:
  """`KeyedNoise`, `RecordedNoise` or None."""
  check(
    value is None or isinstance(value, KeyedNoise | RecordedNoise),
    f"{name} is {shown(value)}; expected KeyedNoise or RecordedNoise, or None"
    " and a key.",
  )
  return value


def reverse_settings(value: Any, name: str) -> Any:
  """`ReverseSettings`, the same as arrays, or None for the published ones."""
  check(
    value is None or isinstance(value, ReverseSettings | Walk),
    f"{name} is {shown(value)}; expected marjax.ReverseSettings, such as"
    " ReverseSettings(num_steps=100), or None.",
  )
  return value


def temperature(value: Any, name: str) -> Any:
  """A finite number, 0 or more; perhaps traced."""
  real(value, name)
  check(
    is_traced(value) or 0 <= value < jnp.inf,
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


def check_z(z: Any, name: str, params: Mapping, config: Any) -> None:
  """Compares the vectors with a head's parameters, and those with its config.

  Args:
    z: [*batch, W]. name: for messages. params: of the head; {} while they are
      being made. config: of the head.
  """
  if not params:
    return
  net = params.get("net", {})
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
    f"{name} has shape {z.shape}; expected {width[0]} numbers in the last axis,"
    " as in the z that these parameters were made for.",
  )


def check_batch(value: Any, name: str, shape: tuple) -> None:
  """Compares the shape of an argument with what z asks for."""
  check(
    value.shape == shape,
    f"{name} has shape {value.shape}; expected {shape} beside this z.",
  )


def check_random(key: Any, recorded: Any, name: str, batch: tuple) -> None:
  """Refuses no random numbers, and two kinds of them; see `keys.check_key`."""
  if recorded is None:
    keys.check_key(key, batch, f"{name}=")
    return
  check(key is None, f"key and {name} are both there; give one of them.")


def check_loss_draws(draws: LossDraws, shape: tuple) -> None:
  """Compares recorded draws with [*batch, R, D]."""
  check_batch(draws.timesteps, "draws.timesteps", shape[:-1])
  check_batch(draws.noise, "draws.noise", shape)


def check_noise(value: Any, batch: tuple, steps: int, dim: int) -> None:
  """Compares keyed or recorded noise with its tokens and steps."""
  if isinstance(value, KeyedNoise):
    row_keys = value.row_keys
    keys.check_key(row_keys, batch, "recorded noise")
    check_batch(row_keys, "noise.row_keys", batch)
    return
  check_batch(value.start, "noise.start", (*batch, dim))
  most = value.steps.shape[0]
  check_batch(value.steps, "noise.steps", (most, *batch, dim))
  check(
    most >= steps,
    f"noise was recorded for {most} steps; expected {steps}, as the settings"
    " ask for.",
  )
