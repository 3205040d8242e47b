"""The tiny published-layout model, and comparisons in the goldens' terms.

Arrays of the published program: latents NCHW, masks 1 = still masked, orders
that mask their first entries, loss rows repeat-major.
"""

import jax
import jax.numpy as jnp
import numpy as np

from marjax.backbone.conditions import ClassesConfig
from marjax.backbone.masked import MaskedConfig
from marjax.convert import mar, table
from marjax.head.diffusion import DiffusionHeadConfig
from marjax.model import ModelConfig, init_params
from marjax.tokens.patches import patchify

TINY = ModelConfig(
  MaskedConfig(
    num_tokens=16,
    token_dim=16,
    width=64,
    encoder_depth=2,
    decoder_depth=2,
    num_heads=4,
    num_buffer=8,
    attention_dropout=0.0,
    projection_dropout=0.0,
    condition=ClassesConfig(num_classes=10),
  ),
  DiffusionHeadConfig(token_dim=16, width=64, depth=2, repeats=4),
)


def params_of(weights: dict) -> dict:
  """Published names to our parameters, by the table."""
  from flax import linen as nn

  target = jax.eval_shape(
    lambda: nn.unbox(init_params(TINY, jax.random.key(0)))
  )
  return table.convert(mar.RULES, weights, target)


def tokens_of(latents: np.ndarray):
  """NCHW latents to raster tokens [B, L, D]."""
  return patchify(jnp.asarray(latents.transpose(0, 2, 3, 1)), 1)


def reveal_order(published_order: np.ndarray):
  """Their order masks first entries longest; ours reveals them last."""
  return jnp.asarray(published_order[:, ::-1].astype(np.int32))


def rows_of(array: np.ndarray, batch: int, length: int):
  """Repeat-major rows [R·B·L, ...] to [B, L, R, ...]."""
  rows = array.reshape(-1, batch, length, *array.shape[1:])
  return np.moveaxis(rows, 0, 2)


def assert_close(ours, theirs, tolerance: float):
  """|ours - theirs| <= tolerance · max|theirs|."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape
  largest = np.abs(theirs).max()
  error = np.abs(ours.astype(np.float64) - theirs).max() / largest
  assert error <= tolerance, f"error {error:.2e} of the largest value"
