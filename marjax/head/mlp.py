"""What heads around the adaLN MLP share: its shape, its cost, its two passes.

The network is `marjax.head.denoiser.Denoiser`. Its matrix products take 5 ·
depth + 2 times width² for a token and an evaluation, of which three fifths are
modulations that depend on z and the time alone.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from marjax import keys, schema
from marjax.arrays import Conditions, Scalar, TokenRows
from marjax.head import calls, scan
from marjax.head.denoiser import Denoiser
from marjax.head.noise import KeyedNoise, LossDraws, keys_of_rows
from marjax.layers.placed import platform
from marjax.layers.plain import Plain
from marjax.protocols import Noise
from marjax.schema import Range, Size

ROWS_AT_ONCE = 16384
"""Rows of one product of modulations, tokens times passes times timesteps."""

FLOAT32_LAYERS = ("embed_x", "time_in", "time_out", "final_linear")
"""Linear layers that are float32 in every configuration."""

Guidance = tuple[Conditions, float | Float[Array, ""]]
"""z of the unconditional pass, and the scale."""


@schema.config
class MLPConfig:
  """Shape of a head that is an MLP.

  Attributes:
    token_dim: D, numbers per token.
    width: of the MLP. depth: residual blocks.
    repeats: R, draws per token in the loss.
    dtype: of the matmuls, "float32" or "bfloat16".
  """

  token_dim: Size
  width: Size = 1024
  depth: Annotated[int, Range(1, 256)] = 3
  repeats: Annotated[int, Range(1, 1024)] = 4
  dtype: Literal["float32", "bfloat16"] = "float32"
  num_codes: ClassVar[int] = 0

  @property
  def token_shape(self) -> tuple[int, ...]:
    """Shape of one token, (D,)."""
    return (self.token_dim,)

  @property
  def noise_shape(self) -> tuple[int, ...]:
    """Shape of the noise of one token, (D,)."""
    return self.token_shape

  def net(self, **fields) -> Denoiser:
    """The network of this shape; `fields` are further ones of `Denoiser`."""
    return Denoiser(
      token_dim=self.token_dim,
      width=self.width,
      depth=self.depth,
      dtype=jnp.dtype(self.dtype),
      **fields,
    )

  def draw(self, row_keys: Key[Array, "*batch"]) -> Any:
    """`LossDraws` for each row: R times, by `draw_times`, and normal noise."""
    noise = keys.normal(keys.at(row_keys, 1), (self.repeats, self.token_dim))
    return LossDraws(self.draw_times(keys.at(row_keys, 0)), noise)

  def row_cost(self, settings: Any, z_width: int) -> float:
    """Multiplications to draw one token, but for those by z, done once."""
    del z_width
    return (5.0 * self.depth + 2.0) * self.width**2 * settings.num_steps

  def is_float32(self, path: tuple[str, ...]) -> bool:
    """Whether the parameter of that path stays float32 in every dtype."""
    is_linear = path[-1] in ("kernel", "bias")
    return not is_linear or any(
      "norm" in name or name in FLOAT32_LAYERS for name in path
    )


class MLPHead(Plain):
  """z ↔ the distribution of one token, by an MLP; one for each kind of it.

  A kind says what its loss is made of, in `loss_terms`, and how it draws, in
  `walk_through`.
  """

  config: MLPConfig
  has_random_loss: ClassVar[bool] = True
  has_random_samples: ClassVar[bool] = True

  def setup(self):
    self.net = self.config.net()

  def __call__(self, *args, **kwargs) -> dict[str, Scalar]:
    """Same as `loss`; initialises all parameters."""
    return self.loss(*args, **kwargs)

  @calls.loss
  def loss(
    self,
    z: Conditions,
    target: TokenRows,
    weights: Float[Array, "*batch"] | None = None,
    *,
    key: Key[Array, "*any"] | None = None,
    draws: Any = None,
  ) -> dict[str, Scalar]:
    """Losses of the targets given z, in float32.

    Args:
      z: [*batch, W] from any model.
      target: [*batch, D], about unit variance.
      weights: [*batch], 0 leaves a token out; None for all 1.
      key: one key, or one per token ([*batch]).
      draws: recorded, as `config.draw` makes them, instead of a key.

    Returns:
      Weighted means over tokens and repeats: "loss", and the terms of which it
      is the sum.

    Raises:
      ValueError: one of them, or the parameters, of another type or shape;
        NaN; no key and no draws.
    """
    if draws is None and self.has_random_loss:
      draws = self.config.draw(keys_of_rows(key, target.shape[:-1]))
    terms = self.loss_terms(z, target.astype(jnp.float32), draws)
    means = {
      name: weighted_mean(jnp.mean(term, axis=-1), weights)
      for name, term in terms.items()
    }
    return {"loss": sum(means.values()), **means}

  @calls.sample
  def sample(
    self,
    z: Conditions,
    settings: Any = None,
    *,
    key: Key[Array, "*any"] | None = None,
    noise: Noise | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    guidance: Guidance | None = None,
  ) -> TokenRows:
    """Draws one token per z, [*batch, D] float32.

    Args:
      z: [*batch, W].
      settings: of the head's own class, `config.Settings`, or their `walk()`.
      key: one key, or one per token ([*batch]); or `noise` instead.
      noise: keyed or recorded noise.
      temperature: >= 0, scales the noise; of what, the kind of head says.
      guidance: (z of the unconditional pass [*batch, W], scale): uncond + scale
        · (cond - uncond), both passes from the same x. None for a single pass.

    Raises:
      ValueError: one of them, or the parameters, of another type or shape;
        NaN; no key and no noise.
    """
    if settings is None:
      settings = self.config.Settings()
    is_walk = not isinstance(settings, self.config.Settings)
    if noise is None and self.has_random_samples:
      noise = KeyedNoise(keys_of_rows(key, z.shape[:-1]))
    return self.walk_through(
      settings if is_walk else settings.walk(),
      noise,
      temperature,
      passes(self.net, z, guidance),
      None if guidance is None else guidance[1],
    )

  def evaluations(self, step, start, scanned, times, noise, both: "Passes"):
    """`scan.evaluations` of the network at times [T], by how many are left."""
    return scan.evaluations(
      step,
      start,
      scanned,
      self.net.embed_time(jnp.asarray(times)),
      noise,
      self.config.noise_shape,
      prepare=both.prepare,
      at_once=steps_at_once(len(times), both.rows),
    )


class Passes(NamedTuple):
  """A network's conditional pass and, if guided, unconditional one, as one.

  Attributes:
    evaluate: (x [*batch, D], modulations, index) to outputs [*batch, P, F], of
      P = 1 or 2 passes, the unconditional second.
    prepare: time embeddings [C, width] to modulations of C times.
    batch: shape of the batch of tokens. rows: tokens times passes.
  """

  evaluate: Callable
  prepare: Callable
  batch: tuple[int, ...]
  rows: int


def passes(net: Denoiser, z: Conditions, guidance: Guidance | None) -> Passes:
  """The passes over these z; what does not wait for x is computed here."""
  embedded = [net.embed_z(z)]
  if guidance is not None:
    embedded.append(net.embed_z(guidance[0]))
  # The passes share an inner axis: the batch stays the leading one, so a batch
  # that is split over devices is never gathered.
  embedded = jnp.stack(embedded, axis=-2)
  modulation = net.modulation()
  unbound, variables = net.unbind()

  def prepare(time_embedding):
    """Of several times at once, [C, width]; the batch comes second."""
    shape = (-1, *(1,) * (embedded.ndim - 1), time_embedding.shape[-1])
    return modulation(embedded + time_embedding.reshape(shape), before=1)

  def evaluate(x, modulations, index):
    return unbound.apply(
      variables, x[..., None, :], modulations, index, method="denoise"
    )

  rows = math.prod(embedded.shape[:-1])
  return Passes(evaluate, prepare, z.shape[:-1], rows)


def guided(outputs: Float[Array, "*batch P F"], scale: Any) -> TokenRows:
  """The passes mixed: uncond + scale · (cond - uncond), or the only one."""
  conditional = outputs[..., 0, :]
  if outputs.shape[-2] == 1:
    return conditional
  unconditional = outputs[..., 1, :]
  return unconditional + scale * (conditional - unconditional)


def steps_at_once(num_steps: int, rows: int) -> int:
  """Evaluations whose modulations are computed by one product: a divisor.

  Few rows would read the weights of that product, 62 % of the network's, again
  at every step and do little with them; `ROWS_AT_ONCE` keep a chip busy. On
  CPUs one step's modulations stay in the cache until they are used.
  """
  if platform() == "cpu":
    return 1
  divisors = [n for n in range(1, num_steps + 1) if num_steps % n == 0]
  return max([n for n in divisors if n * rows <= ROWS_AT_ONCE], default=1)


def weighted_mean(
  values: Float[Array, "*batch"], weights: Float[Array, "*batch"] | None
) -> Float[Array, ""]:
  """The mean over tokens, 0 if all of them weigh nothing."""
  if weights is None:
    return jnp.mean(values)
  return jnp.sum(weights * values) / jnp.maximum(jnp.sum(weights), 1.0)
