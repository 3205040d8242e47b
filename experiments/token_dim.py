"""How many numbers of a token one head of a given width can learn.

    python -m experiments.token_dim

1. Data are a mixture of four Gaussians in D dimensions, standardised. Each has
   axes of its own, with deviations from 0.1 to 0.7 before that.
2. A head learns it as a distribution without condition, in 2 000 steps.
3. "divergence" is KL(data ‖ flow head) over D, in nats: by the density of the
   mixture and the head's `log_likelihood` of 500 fresh points.
4. "distance" is the mean W₁ of 2 000 draws to as many points along 200 random
   directions, over that of two sets of points: 1 is perfect.
5. Rows already there are skipped.
"""

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import markdown, programs, rows
from marjax.head.diffusion import DiffusionHeadConfig
from marjax.head.flow import FlowHeadConfig, FlowSettings
from marjax.head.reverse import ReverseSettings
from marjax.head.standard import Standard

RESULTS = Path("experiments/results/token_dim.jsonl")
NUM_STEPS, BATCH, DEPTH, COMPONENTS = 2000, 128, 3, 4
POINTS, CHECKED, DIRECTIONS = 2000, 500, 200
SETTINGS = {"flow": FlowSettings(25), "diffusion": ReverseSettings(100, 950)}
CASES = tuple(
  (kind, dim, width)
  for dim, width in ((1, 128), (4, 128), (16, 128), (64, 128), (64, 256))
  for kind in ("flow", "diffusion")
)


class Mixture:
  """Gaussians of equal weight, standardised by exact moments."""

  def __init__(self, dim: int):
    rng = np.random.default_rng(dim)
    means = rng.normal(size=(COMPONENTS, dim))
    axes = np.linalg.qr(rng.normal(size=(COMPONENTS, dim, dim)))[0]
    factors = axes * np.geomspace(0.7, 0.1, dim)
    variance = np.mean(np.sum(factors**2, axis=-1), axis=0) + means.var(axis=0)
    self.standard = Standard(means.mean(axis=0), np.sqrt(variance))
    self.means = self.standard.standardised(means)
    self.factors = factors / self.standard.std[:, None]

  def draw(self, key, count: int):
    """Points [count, D]."""
    which, normal = jax.random.split(key)
    which = jax.random.randint(which, (count,), 0, COMPONENTS)
    normal = jax.random.normal(normal, (count, self.means.shape[1]))
    factors = jnp.asarray(self.factors, jnp.float32)[which]
    centres = jnp.asarray(self.means, jnp.float32)[which]
    return centres + jnp.einsum("nij,nj->ni", factors, normal)

  def log_density(self, x) -> np.ndarray:
    """log p of points [N, D], float64, in nats."""
    away = np.linalg.solve(
      self.factors, (np.asarray(x, np.float64)[:, None] - self.means)[..., None]
    )
    logs = -0.5 * np.sum(away[..., 0] ** 2, axis=-1)
    logs -= np.linalg.slogdet(self.factors)[1]
    logs -= 0.5 * x.shape[1] * np.log(2 * np.pi) + np.log(COMPONENTS)
    return np.logaddexp.reduce(logs, axis=1)


def fit(head, mixture: Mixture, num_steps: int):
  """Parameters after so many steps."""
  z, optimizer = (
    jnp.ones((BATCH, 1)),
    optax.adam(optax.cosine_decay_schedule(2e-3, num_steps)),
  )

  def step(carry, key):
    params, state = carry

    def loss(params):
      return head.apply(params, z, mixture.draw(key, BATCH), key=key)["loss"]

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return (optax.apply_updates(params, updates), state), None

  key = jax.random.key(0)
  params = head.init(key, z, mixture.draw(key, BATCH), key=key)
  keys = jax.random.split(jax.random.key(1), num_steps)
  run = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0])
  return run((params, optimizer.init(params)))[0]


def distance(one, other) -> float:
  """Mean W₁ along random directions of points [N, D]."""
  directions = np.random.default_rng(0).normal(size=(one.shape[1], DIRECTIONS))
  directions /= np.linalg.norm(directions, axis=0)
  along = [np.sort(np.asarray(x) @ directions, axis=0) for x in (one, other)]
  return float(np.mean(np.abs(along[0] - along[1])))


def measure(kind: str, dim: int, width: int, num_steps: int) -> rows.Row:
  """One head of one width on tokens of D numbers."""
  configs = {"flow": FlowHeadConfig, "diffusion": DiffusionHeadConfig}
  head, mixture = configs[kind](dim, width, DEPTH).build(), Mixture(dim)
  start = time.perf_counter()
  params = jax.block_until_ready(fit(head, mixture, num_steps))
  seconds = time.perf_counter() - start
  one, other, points = (
    mixture.draw(jax.random.key(seed), POINTS) for seed in (2, 3, 4)
  )
  key = jax.random.key(5)
  settings = SETTINGS[kind]
  draw = jax.jit(
    lambda z: head.apply(params, z, settings, key=key, method="sample")
  )
  drawn = draw(jnp.ones((POINTS, 1)))
  row = {
    "distance": distance(drawn, one) / distance(points, other),
    "training_seconds": seconds,
  }
  if kind == "flow":
    density = jax.jit(
      lambda x: head.apply(
        params, jnp.ones((CHECKED, 1)), x, method="log_likelihood"
      )
    )
    checked = one[:CHECKED]
    lost = mixture.log_density(checked) - np.asarray(density(checked))
    row["divergence"] = float(lost.mean() / dim)
    row["divergence_error"] = float(lost.std() / dim / CHECKED**0.5)
  return row


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Measures what is missing and prints the table."""
  parser = programs.parser(__spec__, __doc__)
  parser.add_argument("--out", type=Path, default=RESULTS)
  parser.add_argument("--num_steps", type=programs.count, default=NUM_STEPS)
  chosen = parser.parse_args(argv)
  for kind, dim, width in CASES:
    case = {"head": kind, "token_dim": dim, "width": width}
    case["steps"] = chosen.num_steps
    how = functools.partial(measure, kind, dim, width, chosen.num_steps)
    rows.measured(chosen.out, case, how)
  print(of_heads(rows.read(chosen.out), chosen.num_steps))


def of_heads(table: list[rows.Row], num_steps: int = NUM_STEPS) -> str:
  """The table of docs/head_library.md, of heads trained for so many steps."""
  own = [row for row in table if row["steps"] == num_steps]

  def other(flow: rows.Row) -> str:
    shape = {key: flow[key] for key in ("token_dim", "width")}
    found = rows.find(own, head="diffusion", **shape)
    return f"{found['distance']:.2f}" if found else ""

  columns: markdown.Columns = {
    "numbers D": lambda row: str(row["token_dim"]),
    "width": lambda row: str(row["width"]),
    "flow: divergence per number": lambda row: (
      f"{row['divergence']:.3f} ± {row['divergence_error']:.3f}"
    ),
    "flow: distance": lambda row: f"{row['distance']:.2f}",
    "diffusion: distance": other,
  }
  return markdown.table(columns, (row for row in own if row["head"] == "flow"))


if __name__ == "__main__":
  sys.exit(main())
