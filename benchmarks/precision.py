"""What bfloat16 does to z, to the head and to the tokens; JSON lines.

    python -m benchmarks.precision --sizes digits
    python -m benchmarks.precision --checkpoint out/digits

1. Parameters of a checkpoint; or as initialised, with a head that is fitted for
   a while to standard normal tokens given random z: a fresh head gives exactly
   0, and one of random numbers throws x out of bounds.
2. A variant is a dtype of the matmuls and a precision: float32 at "highest" is
   the reference, float32 at "default" is what accelerators make of it,
   bfloat16. Labels, orders and noise are the same for all.
3. z, with half of the tokens known.
4. eps at the first visited timestep, and x after the first reverse step, from
   the reference's z: this step multiplies an error of eps by `amplification`,

       mean = a · (√(1/abar) · x - √(1/abar - 1) · eps) + b · x
       amplification = a · √(1/abar - 1)

5. Tokens of whole images: their difference from the reference's, which grows
   from token to token, and their distribution, which is what counts.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import flags
from benchmarks.fitting import Subject, of_checkpoint, of_size
from experiments import programs, rows
from marjax import keys
from marjax.generate import reveal
from marjax.generate.draws import draw_batch
from marjax.generate.settings import Settings
from marjax.head import process, reverse
from marjax.model import ModelConfig
from marjax.tokens.order import random_orders

QUANTILES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)


class Variant(NamedTuple):
  """How the arithmetic is done.

  Attributes:
    dtype: of the matmuls, or convolutions.
    precision: of products, as in `jax.default_matmul_precision`.
  """

  dtype: str
  precision: str


REFERENCE = Variant("float32", "highest")
VARIANTS = (
  REFERENCE,
  Variant("float32", "default"),
  Variant("bfloat16", "default"),
)


def variants() -> tuple[Variant, ...]:
  """Those that differ: CPUs round no factors of float32 products."""
  is_cpu = jax.devices()[0].platform == "cpu"
  return tuple(
    variant
    for variant in VARIANTS
    if variant != Variant("float32", "default") or not is_cpu
  )


def measure(
  subject: Subject, starts: Sequence[int], batch_size: int
) -> Iterator[dict]:
  """One row for each start and variant, the reference's first."""
  for start in starts:
    settings = subject.settings.changed({"head": {"start": start}})
    reference = None
    for variant in variants():
      found = results(subject, settings, variant, batch_size, reference)
      reference = reference or found
      yield {
        "subject": subject.name,
        "start": start,
        **variant._asdict(),
        "batch_size": batch_size,
        "settings": rows.as_row(settings),
        **columns(found, reference),
        "amplification": amplification(settings),
        **flags.where(),
      }


def results(
  subject: Subject,
  settings: Settings,
  variant: Variant,
  batch_size: int,
  reference: dict | None,
) -> dict[str, np.ndarray]:
  """z, eps, x after the first step, and tokens, by one variant."""
  config = subject.config.in_dtype(variant.dtype)
  with jax.default_matmul_precision(variant.precision):

    def run(function: Callable, *arguments):
      bound = functools.partial(function, config, settings)
      return np.asarray(jax.jit(bound)(subject.params, *arguments))

    ids = jnp.arange(batch_size)
    z = run(_z, ids)
    given = z if reference is None else reference["z"]
    eps, x = run(_first_step, jnp.asarray(given))
    return {"z": z, "eps": eps, "first_step": x, "tokens": run(_tokens, ids)}


def _z(config: ModelConfig, settings: Settings, params, ids):
  """z of all positions, half of the tokens known."""
  del settings
  c = config.backbone
  known = c.num_tokens // 2
  order = random_orders(keys.at(keys.root(2), ids), c.num_tokens)
  x = jax.random.normal(keys.root(3), (*ids.shape, known, c.token_dim))
  counts = jnp.full_like(ids, known)
  labels = ids % max(c.condition.num_classes, 1)
  return config.build().apply(
    {"params": params}, x, counts, order, labels, method="z"
  )


def _first_step(config: ModelConfig, settings: Settings, params, z):
  """eps of every token at the first visited timestep, and x after it."""
  shape = (*z.shape[:-1], config.head.token_dim)
  x, noise = jax.random.normal(keys.root(4), (2, *shape))
  t = jnp.full(shape[:-1], settings.head.start)
  output = config.head.build().apply(
    {"params": params["head"]}, x, t, z, method=lambda head, *a: head.net(*a)
  )
  eps, v = process.split_output(output)
  c = _first_coefficients(settings)
  mean, spread = reverse.ancestral_step(c, x, eps, v)
  return jnp.stack([eps, mean + spread * noise])


def _tokens(config: ModelConfig, settings: Settings, params, ids):
  """Tokens of whole images."""
  static = reveal.static_for(config, settings)
  draws = draw_batch(keys.root(5), ids, config.backbone)
  labels = ids % max(config.backbone.condition.num_classes, 1)
  return reveal.generate(
    static, params, labels, draws, reveal.numbers_for(static.plan, settings)
  )


def _first_coefficients(settings: Settings) -> process.Coefficients:
  tables = settings.head.process().coefficients()
  return jax.tree.map(lambda values: jnp.asarray(values)[-1], tables)


def amplification(settings: Settings) -> float:
  """Error of x after the first step over error of eps in it."""
  c = _first_coefficients(settings)
  return float(c.posterior_mean_x0 * c.sqrt_recip_minus_one)


def columns(found: dict, reference: dict) -> dict:
  """Size and error of each result, and the distribution of the tokens."""
  row = {}
  for name, values in found.items():
    error = values.astype(np.float64) - reference[name]
    row |= {
      f"{name}_rms": rms(values),
      f"{name}_max": float(np.abs(values).max()),
      f"{name}_error_rms": rms(error),
      f"{name}_error_max": float(np.abs(error).max()),
    }
  tokens = found["tokens"].astype(np.float64)
  return row | {
    "tokens_mean": float(tokens.mean()),
    "tokens_std": float(tokens.std()),
    "tokens_quantiles": {
      str(q): float(np.quantile(tokens, q)) for q in QUANTILES
    },
  }


def rms(values) -> float:
  """Root mean square, summed in float64."""
  return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → measurements → appended lines; 2 after an error to mend."""
  args = _flags(argv)
  starts = programs.numbers("--starts", args.starts)
  names = [args.checkpoint] if args.checkpoint else args.sizes.split(",")
  asked = {
    "num_ar_steps": args.num_ar_steps,
    "num_buckets": args.num_buckets,
    "head": {"num_steps": args.num_diffusion_steps},
  }
  rows.make(args.out)
  for name in names:
    subject = (
      of_checkpoint(name) if args.checkpoint else of_size(name, args.fit)
    )
    settings = subject.settings.changed(asked)
    subject = subject._replace(settings=settings)
    for row in measure(subject, starts, args.batch_size):
      rows.append(args.out, row)
      print(_sentence(row), flush=True)


def _sentence(row: dict) -> str:
  return (
    f"{row['subject']}, start {row['start']}, {row['dtype']}"
    f" {row['precision']}: error of z {row['z_error_rms']:.2g},"
    f" of eps {row['eps_error_rms']:.2g},"
    f" × {row['amplification']:.3g} = {row['first_step_error_rms']:.2g};"
    f" tokens {row['tokens_mean']:.4f} ± {row['tokens_std']:.4f}"
  )


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = programs.parser(__spec__, __doc__)
  parser.add_argument("--sizes", default="digits", help="A,B of sizes.py")
  parser.add_argument("--checkpoint", help="a trained model instead")
  parser.add_argument("--starts", default="999,950", help="timesteps")
  parser.add_argument(
    "--batch_size", type=programs.count, default=64, help="images"
  )
  parser.add_argument(
    "--fit", type=programs.count, default=500, help="steps of the head"
  )
  parser.add_argument("--num_ar_steps", type=programs.count)
  parser.add_argument("--num_diffusion_steps", type=programs.count, default=100)
  parser.add_argument(
    "--num_buckets", type=programs.count, default=2, help="few compile faster"
  )
  flags.add_out(parser, "precision")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
