"""Markdown tables of the committed results.

    python -m experiments.tables            print them
    python -m experiments.tables --write    and write results/tables.md

Each table is a list of columns: heading, and how a row fills it. Numbers are
printed here only, so a table never says more digits than it should. Edits have
a line for all their seeds: mean ± standard deviation.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

from experiments import rows
from marjax import outputs

RESULTS = Path("experiments/results")
BENCHMARKS = Path("benchmarks/results/rows.jsonl")

Columns = dict[str, Callable[[rows.Row], str]]

SCORES: Columns = {
  "label accuracy": lambda row: f"{row['label_accuracy']:.3f}",
  "Fréchet ratio": lambda row: f"{row['frechet_ratio']:.2f}",
  "near copies": lambda row: f"{row['near_copy_rate']:.3f}",
}

SAMPLERS: Columns = {
  "sampler": lambda row: row["name"],
  **SCORES,
  "seconds": lambda row: f"{row['seconds']:.1f}",
}

CONTROL: Columns = {
  "head": lambda row: {
    "diffusion": "diffusion",
    "regression": "L2 (control)",
  }[row["head"]],
  "steps": lambda row: str(row["steps_trained"]),
  **SCORES,
}

EDITS: Columns = {
  "edit": lambda row: row["edit"],
  "region": lambda row: row["region"],
  "drawn": lambda row: f"{row['share_drawn']:.0%}",
  "label asked for": lambda row: _spread(row["asked_label_accuracy"]),
  "own label": lambda row: _spread(row["own_label_accuracy"]),
  "own label, region grey": lambda row: f"{row['grey_accuracy']:.3f}",
}

SPEED: Columns = {
  "task": lambda row: row["task"],
  "model": lambda row: row["size"],
  "parameters": lambda row: _short(row["parameters"]["all"]),
  "batch": lambda row: str(row["batch_size"]),
  "dtype": lambda row: row["dtype"],
  "ms": lambda row: _digits(1e3 * row["seconds"]),
  "images/s": lambda row: _digits(row["images_per_second"]),
  "TFLOP/s": lambda row: _digits(row["tflops_per_second"]),
  "device": lambda row: device(row),
  "jax": lambda row: row["versions"]["jax"],
}

PREFLIGHT: Columns = {
  "model": lambda row: row["config"],
  "program": lambda row: row["program"],
  "chips": lambda row: f"{row['num_chips']}, {row['topology']}",
  "images": lambda row: str(row["batch_size"]),
  "state, GiB": lambda row: _gib(
    sum(row["memory"].get(part, 0.0) for part in _STATE)
  ),
  "temporaries": lambda row: _gib(row["memory"]["temporaries"]),
  "in all": lambda row: _gib(row["needed"]),
  "a chip has": lambda row: _gib(row["limit"]),
  "gathered": lambda row: _moved(row, "all-gather", "collective-permute"),
  "scattered, reduced": lambda row: _moved(row, "reduce-scatter", "all-reduce"),
  "bound, s": lambda row: _digits(row["bound"]["seconds"]),
  "use of the peak then": lambda row: f"{row['bound']['utilisation']:.0%}",
}

_STATE = ("parameters", "averages", "optimizer")


def markdown(columns: Columns, table: Sequence[rows.Row]) -> str:
  """A markdown table with one line per row."""
  lines = [list(columns), ["---"] * len(columns)]
  lines += [[fill(row) for fill in columns.values()] for row in table]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def device(row: rows.Row) -> str:
  """Where a row was measured, in a few words."""
  found = row["device"]
  if found["platform"] == "cpu":
    return f"{found['cores']} cores of {found['processor']}"
  return f"{found['count']} × {found['kind']}"


def tables(results: Path, benchmarks: Path) -> str:
  """Every table whose rows are there, with what it shows above it."""
  parts = []
  for name, columns in (("samplers", SAMPLERS), ("control_l2", CONTROL)):
    table = rows.read(results / f"{name}.jsonl")
    if table:
      parts.append(f"{_caption(table)}\n\n{markdown(columns, table)}")
  edits = rows.read(results / "edits.jsonl")
  if edits:
    lines = markdown(EDITS, over_seeds(edits))
    parts.append(f"{_caption_of_edits(edits)}\n\n{lines}")
  preflight = rows.read(results / "preflight.jsonl")
  if preflight:
    parts.append(f"{_PREFLIGHT_CAPTION}\n\n{markdown(PREFLIGHT, preflight)}")
  speed = rows.read(benchmarks)
  if speed:
    parts.append(
      "Medians after warm-up; see benchmarks/README.md.\n\n"
      f"{markdown(SPEED, speed)}"
    )
  return "\n".join(parts)


def over_seeds(table: Sequence[rows.Row]) -> list[rows.Row]:
  """One row per edit and region; what was seen becomes a list, one per seed."""
  groups = {}
  for row in table:
    of = (row["edit"], row["region"], row["parameters"], str(row["settings"]))
    groups.setdefault((*of, row["num_images"]), []).append(row)
  seen = ("asked_label_accuracy", "own_label_accuracy")
  return [
    {**group[0], **{key: [row[key] for row in group] for key in seen}}
    for group in groups.values()
  ]


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the tables, and writes them if asked."""
  parser = argparse.ArgumentParser(
    prog="python -m experiments.tables",
    description=__doc__.partition("\n")[0],
  )
  parser.add_argument("--write", action="store_true", help="write tables.md")
  args = parser.parse_args(argv)
  text = tables(RESULTS, BENCHMARKS)
  print(text, end="")
  if args.write:
    # Generated from the committed rows, so nothing is lost.
    outputs.write(RESULTS / "tables.md", text.encode(), overwrite=True)


def _caption(table: Sequence[rows.Row]) -> str:
  first = table[0]
  steps = sorted({row["steps_trained"] for row in table})
  return (
    f"{first['num_images']} digits, seed {first['seed']},"
    f" {' or '.join(map(str, steps))} steps of training; the classifier's"
    f" accuracy on real test images is {first['real_test_accuracy']:.3f};"
    f" {device(first)}, jax {first['versions']['jax']}."
  )


def _caption_of_edits(table: Sequence[rows.Row]) -> str:
  first = table[0]
  steps = sorted({row["steps_trained"] for row in table})
  return (
    f"How often the classifier sees a label in {first['num_images']} real test"
    f" digits, edited; seeds 0 to {max(row['seed'] for row in table)};"
    f" {' or '.join(map(str, steps))} steps of training; on the digits as they"
    f" are it sees their own in {first['real_test_accuracy']:.3f};"
    f" {device(first)}, jax {first['versions']['jax']}."
  )


def _spread(values: Sequence[float | None]) -> str:
  """Mean ± standard deviation; a dash where there is nothing to see."""
  if None in values:
    return "–"
  spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
  return f"{mean(values):.3f}{spread}"


_PREFLIGHT_CAPTION = (
  "Compiled by XLA's TPU compiler, run nowhere. Memory of one chip in GiB;"
  " exchanges of one step: how many, and GB sent by each chip. The bound is the"
  " longest of arithmetic, memory traffic and exchange, each by itself."
)


def _gib(num_bytes: float) -> str:
  return f"{num_bytes / 2**30:.2f}"


def _moved(row: rows.Row, *kinds: str) -> str:
  found = [
    row["collectives"][kind] for kind in kinds if kind in row["collectives"]
  ]
  sent = sum(exchange["sent_bytes"] for exchange in found)
  return f"{sum(e['count'] for e in found)}, {_digits(sent / 1e9)}"


def _digits(value: float) -> str:
  """Three significant digits, never as a power of ten above 1."""
  return f"{float(f'{value:.3g}'):.10g}"


def _short(count: int) -> str:
  return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


if __name__ == "__main__":
  sys.exit(main())
