"""The adaLN MLP that predicts the noise in one token, given z and t.

    x_t ─linear─▶ x ─▶ [block]×depth ─▶ norm, modulate, linear ─▶ (eps, v)
    z   ─linear─┐          ▲                   ▲
    t   ─embed──┴─▶ y ─────┴───────────────────┘

1. y = embed_time(t) + embed_z(z).
2. Block: (shift, scale, gate) = linear(SiLU(y)); h = norm(x)·(1+scale)+shift;
   x += gate · linear(SiLU(linear(h))).
3. The last norm has no affine part; the first and last linears are always
   float32, because the first reverse step multiplies their rounding by up to
   316.

The modulations of all blocks come from one SiLU(y). They are 62 % of the
network's arithmetic and do not wait for x. `embed_z`, `embed_time` and
`modulation` are apart so that a sampler computes what it can before its loop,
and the modulations of several timesteps at once.
Source: spec section 4.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from marjax.arrays import Conditions, Timesteps, TokenRows
from marjax.head import timesteps
from marjax.layers.add_norm import Branch, Modulation, Norm, add_norm
from marjax.layers.linear import linear, product, shared, small_normal, zeros
from marjax.layers.norm import LayerNorm
from marjax.layers.placed import by_batch, is_split, platform


class Modulations(NamedTuple):
  """What y does to the network, before the biases are added.

  Attributes:
    blocks: of each, where shift and gain are, and where its gate is, see
      `add_norm.Modulation`: [*batch, 2 · width] and [*batch, width], or twice
      [*batch, 3 · width].
    final: [*batch, 2 · width], shift and gain of the last norm.
  """

  blocks: list[tuple[Array, Array]]
  final: Array


class AdaLNBlock(nn.Module):
  """One residual block, but for what lies between it and its neighbours."""

  width: int
  dtype: jnp.dtype

  def setup(self):
    self.modulation = linear(
      3 * self.width, ("embed", "mlp"), dtype=self.dtype, kernel_init=zeros
    )
    self.norm = LayerNorm(dtype=self.dtype)
    self.linear_in = linear(self.width, ("embed", "mlp"), dtype=self.dtype)
    self.linear_out = linear(self.width, ("mlp", "embed"), dtype=self.dtype)

  def begin(self, values) -> Norm:
    """What it begins with, given the values that its shift and gain are in."""
    _, bias = self.modulation.weights((self.width,))
    return Norm(*self.norm.weights(self.width), Modulation(values, bias))

  def __call__(self, u, values, is_sampling: bool) -> Branch:
    """Its two products, and the values that their gate is in.

    A sampler's products add the last bias as well. For training it is apart,
    which sums its gradient at no cost.
    """
    _, of_gate = self.modulation.weights((self.width,))
    kernel, bias = self.linear_out.weights((self.width,))
    own, apart = (bias, None) if is_sampling else (None, bias)
    h = nn.silu(by_batch(self.linear_in(u), "mlp"))
    with jax.named_scope("linear_out"):
      h = by_batch(product(h, kernel, own))
    return Branch(h, apart, Modulation(values, of_gate))


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
    self.embed_x = linear(self.width, (None, "embed"), precision="highest")
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
    self.final_linear = linear(
      2 * self.token_dim,
      ("embed", None),
      kernel_init=zeros,
      precision="highest",
    )

  def embed_time(self, t: Timesteps) -> Float[Array, "*batch width"]:
    """Embedding of original timesteps 0 .. 999, integers.

    With one axis they are steps of a process; with more, rows of a batch. On
    one GPU more rows than there are timesteps are looked up; on a mesh XLA
    would gather the batch for it.
    """
    is_batch = t.ndim > 1
    is_many = is_batch and t.size > timesteps.NUM_TIMESTEPS
    if is_many and platform() == "gpu" and not is_split():
      table = self.embed_time(jnp.arange(timesteps.NUM_TIMESTEPS))
      return by_batch(timesteps.rows_at(table, t))

    def placed(h, last=None):
      return by_batch(h, last) if is_batch else h

    h = self.time_in(placed(timesteps.embed(t)))
    return placed(self.time_out(nn.silu(placed(h, "mlp"))))

  def embed_z(self, z: Conditions) -> Float[Array, "*batch width"]:
    """Embedding of the backbone's vectors, [*batch, W] to [*batch, width]."""
    y = by_batch(self.condition(z.astype(self.dtype)))
    return y.astype(jnp.float32)

  def modulation(self) -> Callable[..., Modulations]:
    """y to `Modulations`: what does not wait for x.

    A sampler asks for it before its loop. y = embed_time(t) + embed_z(z), [...,
    *batch, width]; `before` says how many axes come before the batch's.
    """
    layers = [block.modulation for block in self.blocks]
    products = _products(
      [layer.weights((self.width,))[0] for layer in layers],
      self.final_modulation.weights((self.width,))[0],
    )

    def modulations(
      y: Float[Array, "*any width"], before: int = 0
    ) -> Modulations:
      activated = nn.silu(by_batch(y, before=before)).astype(self.dtype)
      # One batch axis, but not merged with those before it: a batch that is
      # split over devices would be gathered.
      rows = activated.reshape(*y.shape[:before], -1, self.width)

      def placed(part):
        return by_batch(part.reshape(*y.shape[:-1], -1), before=before)

      return products(rows, placed, is_cut=not before)

    return modulations

  def denoise(
    self, x: Float[Array, "*rows D"], modulations: Modulations, index=None
  ) -> Float[Array, "*batch D2"]:
    """(eps, v) at x_t, float32; x's axes of size 1 serve all modulations.

    Args:
      x, modulations: what `modulation` gave for the y of these rows.
      index: of the timestep, if modulations of several come first in them.
    """
    h = by_batch(self.embed_x(by_batch(x))).astype(self.dtype)
    shape = modulations.final.shape[0 if index is None else 1 :]
    h = jnp.broadcast_to(h, (*shape[:-1], self.width))
    branch = None
    for block, (values, gate) in zip(
      self.blocks, modulations.blocks, strict=True
    ):
      norm = block.begin(values)
      h, u = add_norm(h, branch, norm, self.dtype, index=index)
      branch = block(u, gate, index is not None)
    _, bias = self.final_modulation.weights((self.width,))
    norm = Norm(None, None, Modulation(modulations.final, bias))
    _, u = add_norm(h, branch, norm, jnp.float32, index=index)
    return by_batch(self.final_linear(u))

  def __call__(
    self, x: TokenRows, t: Timesteps, z: Conditions
  ) -> Float[Array, "*batch D2"]:
    """The whole network: x [*batch, D], t [*batch], z [*batch, W]."""
    y = self.embed_time(t) + self.embed_z(z)
    return self.denoise(x, self.modulation()(y))


def _products(blocks, final) -> Callable[..., Modulations]:
  """rows to rows @ kernel, of each block's kernel and the last one, placed.

  On a CPU, where each call costs, they are one product, of weights put side by
  side here, before any loop. Elsewhere copies would cost. Cut up, shift and
  gain are apart from the gate: a product each, lest their gradients be put
  together.
  """

  def cut(made):
    return tuple(jnp.split(made, [2 * final.shape[0]], axis=-1))

  def pair(made, is_cut):
    return cut(made) if is_cut else (made, made)

  def at_once(rows, placed, is_cut):
    *made, last = jnp.split(placed(rows @ together), ends, axis=-1)
    return Modulations([pair(one, is_cut) for one in made], last)

  def by_layer(rows, placed, is_cut):
    # On a mesh placed first: a split axis would be dealt out anew.
    is_apart = is_cut and not is_split()
    kernels = [*itertools.chain(*map(cut, blocks))] if is_apart else blocks
    kernels = [*kernels, final]
    each = zip(shared(rows, len(kernels)), kernels, strict=True)
    *made, last = [placed(rows @ kernel) for rows, kernel in each]
    if is_apart:
      return Modulations([*zip(made[::2], made[1::2], strict=True)], last)
    return Modulations([pair(one, is_cut) for one in made], last)

  if platform() != "cpu" or is_split():
    return by_layer
  together = jnp.concatenate([*blocks, final], axis=-1)
  ends = list(itertools.accumulate(kernel.shape[-1] for kernel in blocks))
  return at_once
