"""The table of `benchmarks.precision`: what rounding does, variant by variant.

Errors are root mean squares of differences from float32 with full products, on
the same draws. The newest row of each model, start and variant on one kind of
device counts.
"""

from collections.abc import Sequence

from experiments import markdown, rows
from experiments.markdown import Columns


def columns() -> Columns:
  """Heading → how a row fills it."""
  return {
    "model": lambda row: row["subject"],
    "start": lambda row: str(row["start"]),
    "dtype, precision": lambda row: f"{row['dtype']}, {row['precision']}",
    "z: rms, max": lambda row: f"{row['z_rms']:.2f}, {row['z_max']:.1f}",
    "error of z": lambda row: _error(row, "z"),
    "of eps": lambda row: _error(row, "eps"),
    "×": lambda row: f"{row['amplification']:.3g}",
    "of x after a step": lambda row: _error(row, "first_step"),
    "tokens: mean, std": lambda row: (
      f"{row['tokens_mean']:.4g}, {row['tokens_std']:.4g}"
    ),
    "quantiles 0.01, 0.5, 0.99": lambda row: ", ".join(
      f"{row['tokens_quantiles'][q]:.3f}" for q in ("0.01", "0.5", "0.99")
    ),
    "largest token": lambda row: f"{row['tokens_max']:.3g}",
    "error of tokens": lambda row: _error(row, "tokens"),
    "device": markdown.device,
  }


def newest(table: Sequence[rows.Row]) -> list[rows.Row]:
  """One row per model, start, variant and kind of device."""
  found = {}
  for row in table:
    names = (row[name] for name in ("subject", "start", "dtype", "precision"))
    found[*names, row["device"]["kind"]] = row
  return list(found.values())


def _error(row, name: str) -> str:
  error = row[f"{name}_error_rms"]
  return f"{error:.2g}" if error else "0"
