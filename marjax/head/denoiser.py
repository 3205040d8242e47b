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

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from marjax.arrays import Conditions, TokenRows
from marjax.head import timesteps
from marjax.layers.add_norm import Branch, Modulation, Norm, add_norm
from marjax.layers.linear import linear, product, shared, small_normal, zeros
from marjax.layers.norm import LayerNorm
from marjax.layers.placed import by_batch, by_device, is_split, platform


class Modulations(NamedTuple):
  """What y does to the network, before the biases are added.

  Attributes:
    blocks: of each, shift, gain and gate, [*batch, 3 · width]; or apart, shift
      and gain [*batch, 2 · width] and gate [*batch, width].
    final: [*batch, 2 · width], shift and gain of the last norm.
  """

  blocks: list[Array | tuple[Array, Array]]
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

  def ends(
    self, values: Array | tuple[Array, Array], is_whole: bool
  ) -> tuple[Norm, Modulation]:
    """What it begins with, and its gate.

    Args:
      values: of `Modulations`.
      is_whole: whether values and bias are read where they stand, as a
        sampler's kernels do: in their loop every cut is a kernel of its own.
    """
    _, bias = self.modulation.weights((self.width,))
    first = last = Modulation(values, bias)
    if not is_whole:
      cut = functools.partial(jnp.split, axis=-1)
      ends = [2 * self.width]
      values = values if isinstance(values, tuple) else cut(values, ends)
      first, last = map(Modulation, values, cut(bias, ends))
    return Norm(*self.norm.weights(self.width), first), last

  def __call__(self, u: Array, gate: Modulation, is_sampling: bool) -> Branch:
    """Its two products.

    A sampler's products add the last bias as well. For training it is apart,
    which sums its gradient at no cost.
    """
    kernel, bias = self.linear_out.weights((self.width,))
    own, apart = (bias, None) if is_sampling else (None, bias)
    h = nn.silu(by_batch(self.linear_in(u), "mlp"))
    with jax.named_scope("linear_out"):
      h = by_batch(product(h, kernel, own))
    return Branch(h, apart, gate)


class Denoiser(nn.Module):
  """(x_t, t, z) to (eps, v) per token; see the module docstring.

  Attributes:
    token_dim: D. width: of the MLP. depth: residual blocks.
    dtype: of the matmuls; input and output linears stay float32.
    out_features: numbers per token that come out; None for 2 · D.
    time_scale: what times are multiplied with before their sinusoid, whose
      periods are those of timesteps 0 .. 999.
  """

  token_dim: int
  width: int
  depth: int
  dtype: jnp.dtype = jnp.dtype(jnp.float32)
  out_features: int | None = None
  time_scale: float = 1.0

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
      self.out_features or 2 * self.token_dim,
      ("embed", None),
      kernel_init=zeros,
      precision="highest",
    )

  def embed_time(self, t: Num[Array, "*batch"]) -> Float[Array, "*batch width"]:
    """Embedding of times: original timesteps 0 .. 999, integers, or floats.

    With one axis they are steps of a process; with more, rows of a batch. On
    GPUs more rows than there are timesteps are looked up, by each device its
    own: XLA would gather the batch for it.
    """
    is_batch = t.ndim > 1
    is_many = is_batch and t.size > timesteps.NUM_TIMESTEPS
    is_many = is_many and jnp.issubdtype(t.dtype, jnp.integer)
    if is_many and platform() == "gpu":
      table = self.embed_time(jnp.arange(timesteps.NUM_TIMESTEPS))
      rows = ("batch", *(None,) * (t.ndim - 1))
      look_up = by_device(
        timesteps.rows_at, ((None, None), rows), (*rows, None)
      )
      return by_batch(look_up(table, t))

    def placed(h, last=None):
      return by_batch(h, last) if is_batch else h

    h = self.time_in(placed(timesteps.embed(self.time_scale * t)))
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
    layers = [*(block.modulation for block in self.blocks)]
    layers.append(self.final_modulation)
    kernels = [layer.weights((self.width,))[0] for layer in layers]
    ends = np.cumsum([kernel.shape[-1] for kernel in kernels])[:-1]
    # One product on a CPU, where each call costs: 16 % of the digits' time to
    # generate. Elsewhere putting weights side by side would cost more.
    is_one = platform() == "cpu" and not is_split()
    if is_one:
      kernels = [jnp.concatenate(kernels, axis=-1)]

    def modulations(
      y: Float[Array, "*any width"], before: int = 0
    ) -> Modulations:
      activated = nn.silu(by_batch(y, before=before)).astype(self.dtype)
      # One batch axis, but not merged with those before it: a batch that is
      # split over devices would be gathered.
      rows = activated.reshape(*y.shape[:before], -1, self.width)
      # Training on GPUs the gate has a product of its own: else gradients are
      # put together, 29 GB of copies in a step of MAR-L at batch 128, by count
      # in the program.
      is_apart = platform() == "gpu" and not is_split("mlp") and not before
      wanted = kernels
      if is_apart:
        cuts = (jnp.split(k, [2 * self.width], axis=-1) for k in kernels[:-1])
        wanted = [*itertools.chain(*cuts), kernels[-1]]
      parts = [
        by_batch((one @ kernel).reshape(*y.shape[:-1], -1), before=before)
        for one, kernel in zip(shared(rows, len(wanted)), wanted, strict=True)
      ]
      *blocks, final = jnp.split(parts[0], ends, axis=-1) if is_one else parts
      if is_apart:
        blocks = [*zip(blocks[::2], blocks[1::2], strict=True)]
      return Modulations(blocks, final)

    return modulations

  def denoise(
    self,
    x: Float[Array, "*rows D"],
    modulations: Modulations,
    index: Int[Array, ""] | None = None,
  ) -> Float[Array, "*batch outputs"]:
    """The outputs at x_t, float32; x's axes of size 1 serve all modulations.

    Args:
      x: tokens. modulations: what `modulation` gave for the y of these rows.
      index: of the timestep, if modulations of several come first in them.
    """
    h = by_batch(self.embed_x(by_batch(x))).astype(self.dtype)
    shape = modulations.final.shape[0 if index is None else 1 :]
    h = jnp.broadcast_to(h, (*shape[:-1], self.width))
    branch, is_sampling = None, index is not None
    for block, values in zip(self.blocks, modulations.blocks, strict=True):
      norm, gate = block.ends(values, is_whole=is_sampling)
      h, u = add_norm(h, branch, norm, self.dtype, index=index)
      branch = block(u, gate, is_sampling)
    _, bias = self.final_modulation.weights((self.width,))
    norm = Norm(None, None, Modulation(modulations.final, bias))
    _, u = add_norm(h, branch, norm, jnp.float32, index=index)
    return by_batch(self.final_linear(u))

  def __call__(
    self, x: TokenRows, t: Num[Array, "*batch"], z: Conditions
  ) -> Float[Array, "*batch outputs"]:
    """The whole network: x [*batch, D], t [*batch], z [*batch, W]."""
    y = self.embed_time(t) + self.embed_z(z)
    return self.denoise(x, self.modulation()(y))
