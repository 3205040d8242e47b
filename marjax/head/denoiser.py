"""The adaLN MLP that predicts the noise in one token, given z and t.

    x_t ─linear─▶ x ─▶ [block]×depth ─▶ norm, modulate, linear ─▶ (eps, v)
    z   ─linear─┐          ▲                   ▲
    t   ─embed──┴─▶ y ─────┴───────────────────┘

1. y = embed_time(t) + embed_z(z).
2. Block: (shift, scale, gate) = linear(SiLU(y)); h = norm(x)·(1+scale)+shift;
   x += gate · linear(SiLU(linear(h))).
3. The last norm has no affine part; the last linear is always float32, because
   the first reverse step multiplies its rounding by up to 316.

`embed_z` and `embed_time` are separate methods so that a sampler computes them
once, before its loop. Source: spec section 4.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from marjax.arrays import Conditions, Timesteps, TokenRows
from marjax.head import timesteps
from marjax.linear import by_batch, layer_norm, linear, small_normal, zeros


class AdaLNBlock(nn.Module):
  """One residual block, modulated by y."""

  width: int
  dtype: jnp.dtype

  def setup(self):
    self.modulation = linear(
      3 * self.width, ("embed", "mlp"), dtype=self.dtype, kernel_init=zeros
    )
    self.norm = layer_norm()
    self.linear_in = linear(self.width, ("embed", "mlp"), dtype=self.dtype)
    self.linear_out = linear(self.width, ("mlp", "embed"), dtype=self.dtype)

  def __call__(self, x, activated_y):
    shift, scale, gate = jnp.split(
      by_batch(self.modulation(activated_y)), 3, axis=-1
    )
    h = modulate(self.norm(x), shift, scale).astype(self.dtype)
    h = nn.silu(by_batch(self.linear_in(h), "mlp"))
    return x + gate * by_batch(self.linear_out(h))


class Denoiser(nn.Module):
  """(x_t, t, z) to (eps, v) per token; see the module docstring.

  Attributes:
    token_dim: D. width: of the MLP. depth: residual blocks.
    dtype: of the matmuls; input and output linears stay float32.
  """

  token_dim: int
  width: int
  depth: int
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.embed_x = linear(self.width, (None, "embed"))
    self.time_in = linear(
      self.width, ("embed", "mlp"), kernel_init=small_normal
    )
    self.time_out = linear(
      self.width, ("mlp", "embed"), kernel_init=small_normal
    )
    self.condition = linear(self.width, (None, "embed"), dtype=self.dtype)
    self.blocks = [
      AdaLNBlock(self.width, self.dtype) for _ in range(self.depth)
    ]
    self.final_modulation = linear(
      2 * self.width, ("embed", "mlp"), dtype=self.dtype, kernel_init=zeros
    )
    self.final_norm = layer_norm(affine=False)
    self.final_linear = linear(
      2 * self.token_dim, ("embed", None), kernel_init=zeros
    )

  def embed_time(self, t: Timesteps) -> Float[Array, "*batch width"]:
    """Embedding of original timesteps 0 .. 999.

    With one axis they are steps of a process; with more, rows of a batch.
    """
    is_batch = t.ndim > 1

    def placed(h, last=None):
      return by_batch(h, last) if is_batch else h

    h = self.time_in(placed(timesteps.embed(t)))
    return placed(self.time_out(nn.silu(placed(h, "mlp"))))

  def embed_z(self, z: Conditions) -> Float[Array, "*batch width"]:
    """Embedding of the backbone's vectors, [*batch, W] to [*batch, width]."""
    y = by_batch(self.condition(z.astype(self.dtype)))
    return y.astype(jnp.float32)

  def denoise(
    self, x: TokenRows, y: Float[Array, "*batch width"]
  ) -> Float[Array, "*batch D2"]:
    """(eps, v) at x_t for y = embed_time(t) + embed_z(z), float32."""
    activated_y = nn.silu(by_batch(y)).astype(self.dtype)
    h = by_batch(self.embed_x(by_batch(x))).astype(self.dtype)
    for block in self.blocks:
      h = block(h, activated_y)
    shift, scale = jnp.split(
      by_batch(self.final_modulation(activated_y)), 2, axis=-1
    )
    h = modulate(self.final_norm(h), shift, scale)
    return by_batch(self.final_linear(h))

  def __call__(
    self, x: TokenRows, t: Timesteps, z: Conditions
  ) -> Float[Array, "*batch D2"]:
    """The whole network: x [*batch, D], t [*batch], z [*batch, W]."""
    return self.denoise(x, self.embed_time(t) + self.embed_z(z))


def modulate(x, shift, scale):
  """adaLN: x·(1 + scale) + shift."""
  return x * (1 + scale) + shift
