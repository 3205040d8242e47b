"""Models whose tokens stay in bounds, to look at rounding with.

1. A fresh head gives exactly 0, and one of random numbers throws x out of
   bounds, so a head is fitted for a while to standard normal tokens, given
   random z. The backbone is as initialised.
2. Or a trained checkpoint is taken.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from benchmarks import sizes
from marjax import keys
from marjax.generate.settings import Settings
from marjax.model import ModelConfig, init_params
from marjax.pipeline import load

NUM_TOKENS = 256
LEARNING_RATE = 1e-3


class Subject(NamedTuple):
  """A model whose rounding is looked at, and how it is to generate."""

  name: str
  config: ModelConfig
  params: PyTree
  settings: Settings


def of_size(size: str, fit_steps: int) -> Subject:
  """A size with parameters as initialised and a fitted head."""
  experiment = sizes.experiment(size)
  config = experiment.model
  params = jax.jit(lambda: nn.unbox(init_params(config, keys.root(0))))()
  params = {**params, "head": fitted(config, params["head"], fit_steps)}
  return Subject(size, config, params, experiment.sampling)


def of_checkpoint(path: str) -> Subject:
  """A trained model; errors as in `marjax.load`."""
  pipe = load(path)
  settings = pipe.settings()
  return Subject(path, pipe.card.model, pipe.params, settings)


def fitted(config: ModelConfig, params: PyTree, steps: int) -> PyTree:
  """Parameters of a head after some steps on normal tokens and random z."""
  head = config.head.build()
  # To 0, since the first reverse step multiplies what is left of the error.
  optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

  def step(carry, key):
    """carry holds parameters and optimizer state before this step."""
    params, state = carry
    purposes = [keys.stream(key, name) for name in ("z", "tokens", "loss")]
    z = jax.random.normal(purposes[0], (NUM_TOKENS, config.backbone.width))
    x = jax.random.normal(purposes[1], (NUM_TOKENS, config.head.token_dim))

    def loss(params):
      return head.apply(
        {"params": params}, z, x, key=purposes[2], method="loss"
      )["loss"]

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def fit(params):
    each = keys.at(keys.root(1), jnp.arange(steps))
    return jax.lax.scan(step, (params, optimizer.init(params)), each)[0][0]

  return fit(params)
