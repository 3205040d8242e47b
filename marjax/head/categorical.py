"""The categorical head: a softmax over the V codes of a tokenizer.

    l = linear(z)            logits [V], float32
    loss    log sum exp(l) - l[code], the cross-entropy
    sample  one code, int32:

1. l = l_u + w · (l_c - l_u), with the logits of both passes, if guided by w.
2. l / temperature; at 0 the likeliest code is drawn.
3. Only the top_k likeliest codes; of those, only the likeliest ones, as few as
   have a probability of top_p together. Codes that tie with the last stay.
4. argmax(l + g), where g are Gumbel numbers: a draw from softmax(l).

A plain linear layer is enough, for z comes from the backbone normalised, with
the head's positions added. Gumbel numbers are made of standard normal ones, so
noise may be keyed or recorded as every head's; from keys it is drawn where it
is used, and nothing of [L, V] is stored.

Source: arXiv 2406.11838, the cross-entropy of its table 1.
"""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, logsumexp, ndtr
from jaxtyping import Array, Float, Int, Key

from marjax import schema
from marjax.arrays import Conditions, Scalar
from marjax.head import calls
from marjax.head.mlp import Guidance, guided, weighted_mean
from marjax.head.noise import KeyedNoise, keys_of_rows
from marjax.layers.linear import linear
from marjax.layers.placed import by_batch
from marjax.layers.plain import Plain
from marjax.protocols import Noise
from marjax.schema import Range, Share

COLDEST = float(np.finfo(np.float32).tiny)
"""The temperature that colder ones are: its quotients leave the likeliest code,
and chips may take a smaller number for 0, of which 0 / 0 would be NaN."""


class Walk(NamedTuple):
  """Of the one evaluation [1], the numbers of `CategoricalSettings`."""

  top_k: Any
  top_p: Any


@schema.config
class CategoricalSettings:
  """Which codes may be drawn.

  Attributes:
    top_k: only so many, the likeliest; 0 for all.
    top_p: only the likeliest, as few as have this probability together.
  """

  num_steps: Literal[1] = 1
  top_k: Annotated[int, Range(0, 2**31 - 1)] = 0
  top_p: Annotated[float, Range(0, 1, is_open=True)] = 1.0
  final_num_steps: None = None
  kind: Literal["categorical"] = "categorical"
  has_temperature: ClassVar[bool] = True
  PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

  def walk(self) -> Walk:
    """The same as arrays."""
    return Walk(np.int32([self.top_k]), np.float32([self.top_p]))


@schema.config
class CategoricalHeadConfig:
  """Shape of the head.

  Attributes:
    num_codes: V, codes of the tokenizer.
    label_smoothing: share of the target that all codes have alike.
    dtype: of the matmul's factors; logits are summed and stay in float32.
  """

  num_codes: Annotated[int, Range(2, 2**20)]
  label_smoothing: Share = 0.0
  dtype: Literal["float32", "bfloat16"] = "float32"
  kind: Literal["categorical"] = "categorical"
  Settings: ClassVar[type] = CategoricalSettings
  token_shape: ClassVar[tuple[int, ...]] = ()

  @property
  def noise_shape(self) -> tuple[int, ...]:
    """Shape of the noise of one token, (V,)."""
    return (self.num_codes,)

  def build(self) -> "CategoricalHead":
    """The linen module of this shape."""
    return CategoricalHead(self)

  def draw(self, row_keys) -> tuple:
    """Nothing: its loss has no randomness."""
    del row_keys
    return ()

  def row_cost(self, settings: CategoricalSettings, z_width: int) -> float:
    """Multiplications to draw one token."""
    del settings
    return 1.0 * z_width * self.num_codes

  def is_float32(self, path: tuple[str, ...]) -> bool:
    """Whether the parameter of that path stays float32 in every dtype."""
    return path[-1] != "kernel"


class CategoricalHead(Plain):
  """p(code | z) by a softmax; see the module docstring."""

  config: CategoricalHeadConfig
  has_random_loss: ClassVar[bool] = False
  has_random_samples: ClassVar[bool] = True

  def setup(self):
    self.linear = linear(
      self.config.num_codes,
      ("embed", None),
      dtype=jnp.dtype(self.config.dtype),
      out_dtype=jnp.dtype(jnp.float32),
    )

  def __call__(self, *args, **kwargs) -> dict[str, Scalar]:
    """Same as `loss`; initialises all parameters."""
    return self.loss(*args, **kwargs)

  def logits(self, z: Conditions) -> Float[Array, "*batch V"]:
    """Logits [*batch, V], float32, of each z [*batch, W]."""
    return by_batch(self.linear(z))

  @calls.loss
  def loss(
    self,
    z: Conditions,
    target: Int[Array, "*batch"],
    weights: Float[Array, "*batch"] | None = None,
    *,
    key: Key[Array, "*any"] | None = None,
    draws: Any = None,
  ) -> dict[str, Scalar]:
    """Losses of the target codes given z, in float32.

    Args:
      z: [*batch, W] from any model.
      target: codes [*batch], 0 .. V - 1; the loss of others is NaN where they
        are traced and cannot be refused.
      weights: [*batch], 0 leaves a token out; None for all 1.
      key, draws: as of other heads; nothing is drawn from them.

    Returns:
      Weighted means over tokens, in nats: "loss", and what it is the sum of:
      "cross_entropy", and, with label smoothing, the "smoothing" that it adds.

    Raises:
      ValueError: one of them, or the parameters, of another type or shape;
        NaN; a code that is none.
    """
    del key, draws
    terms = losses(self.logits(z), target, self.config.label_smoothing)
    means = {name: weighted_mean(term, weights) for name, term in terms.items()}
    return {"loss": sum(means.values()), **means}

  @calls.sample
  def sample(
    self,
    z: Conditions,
    settings: CategoricalSettings | Walk | None = None,
    *,
    key: Key[Array, "*any"] | None = None,
    noise: Noise | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    guidance: Guidance | None = None,
  ) -> Int[Array, "*batch"]:
    """Draws one code per z, [*batch] int32; -1 where logits are NaN.

    Args:
      z: [*batch, W].
      settings: `CategoricalSettings`, or their `walk()`; None for the defaults.
      key: one key, or one per token ([*batch]); or `noise` instead.
      noise: keyed or recorded noise.
      temperature: >= 0, divides the logits; 0 draws the likeliest code.
      guidance: (z of the unconditional pass [*batch, W], scale): logits uncond
        + scale · (cond - uncond). None for a single pass.

    Raises:
      ValueError: one of them, or the parameters, of another type or shape;
        NaN; no key and no noise.
    """
    if settings is None:
      settings = self.config.Settings()
    walk = settings if isinstance(settings, Walk) else settings.walk()
    if noise is None:
      noise = KeyedNoise(keys_of_rows(key, z.shape[:-1]))
    passes = [z] if guidance is None else [z, guidance[0]]
    logits = guided(
      self.logits(jnp.stack(passes, axis=-2)),
      None if guidance is None else guidance[1],
    )
    most = jnp.max(logits, axis=-1, keepdims=True)
    logits = (logits - most) / jnp.maximum(temperature, COLDEST)
    logits = narrowed(logits, jnp.asarray(walk.top_k)[0], walk.top_p[0])
    drawn = gumbel(noise.initial(self.config.noise_shape))
    codes = jnp.argmax(logits + drawn, axis=-1)
    is_lost = jnp.isnan(most[..., 0])
    return jnp.where(is_lost, -1, codes).astype(jnp.int32)


def losses(
  logits: Float[Array, "*batch V"], target: Int[Array, "*batch"], share: float
) -> dict[str, Float[Array, "*batch"]]:
  """Terms [*batch]: "cross_entropy", and the "smoothing" that a share adds.

  Smoothed targets are (1 - share) · one-hot + share / V.
  """
  num_codes = logits.shape[-1]
  # No lookup: its gradient would be another array of [*batch, V].
  is_target = jnp.arange(num_codes) == target[..., None]
  own = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
  own = jnp.where((target >= 0) & (target < num_codes), own, jnp.nan)
  terms = {"cross_entropy": logsumexp(logits, axis=-1) - own}
  if share:
    terms["smoothing"] = share * (own - jnp.mean(logits, axis=-1))
  return terms


def narrowed(
  logits: Float[Array, "*batch V"], top_k: Any, top_p: Any
) -> Float[Array, "*batch V"]:
  """Logits [*batch, V] of the codes that may be drawn, -inf elsewhere.

  Args:
    logits: divided by the temperature. top_k, top_p: see `CategoricalSettings`;
      numbers, perhaps traced.
  """
  num_codes = logits.shape[-1]
  count = jnp.where(top_k > 0, jnp.minimum(top_k, num_codes), num_codes)

  def cut(logits):
    ranked = jnp.sort(logits, axis=-1, descending=True)
    is_near = ranked >= jnp.take(ranked, count - 1, axis=-1)[..., None]
    shares = jax.nn.softmax(jnp.where(is_near, ranked, -jnp.inf), axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    # Rounding may bring the sum to 1 before its end.
    is_kept = is_near & ((before < top_p) | (top_p >= 1))
    last = jnp.sum(is_kept, axis=-1, keepdims=True) - 1
    least = jnp.take_along_axis(ranked, last, axis=-1)
    return jnp.where(logits >= least, logits, -jnp.inf)

  # Not sorted in vain: 1024 tokens of 16384 codes take 1.2 ms on an H200, while
  # the draw itself takes 0.4 ms.
  is_whole = (count == num_codes) & (top_p >= 1)
  return jax.lax.cond(is_whole, lambda logits: logits, cut, logits)


def gumbel(normal: Float[Array, "*any"]) -> Float[Array, "*any"]:
  """Gumbel numbers [*any] of standard normal ones x, -log(-log Φ(x)).

  Each half of Φ has its own form: 1 - Φ would be rounded where g is large.
  """
  upper = jnp.log1p(-ndtr(-jnp.maximum(normal, 0.0)))
  lower = log_ndtr(jnp.minimum(normal, 0.0))
  return -jnp.log(-jnp.where(normal > 0, upper, lower))
