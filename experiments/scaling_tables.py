"""The table of `benchmarks.scaling`: from one GPU to several.

1. The newest row counts of each question on one kind of device, measured on
   accelerators. The one of one device comes before those it is compared with.
2. docs/speed.md shows them between two markers; while there are none, a
   sentence says how to make them.

An efficiency against a row of an earlier run has a star; what was not measured
is a dash.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments import markdown, rows
from experiments.markdown import Columns, digits
from experiments.speed_tables import NAMES

NO_ROWS = (
  "No row was measured yet: `python -m benchmarks.scaling` on a machine with\n"
  "several GPUs, then `python -m experiments.tables --write`, puts them here.\n"
)

COLUMNS: Columns = {
  "task": lambda row: (
    "training step, " + row["remat"] if row["task"] == "train" else "generation"
  ),
  "model": lambda row: NAMES.get(row["size"], row["size"]),
  "scaling": lambda row: row["mode"],
  "mesh": lambda row: "–" if row["preset"] == "one" else row["preset"],
  "GPUs": lambda row: str(row["num_devices"]),
  "images": lambda row: str(row["batch_size"]),
  "ms": lambda row: digits(1e3 * row["seconds"]),
  "images/s": lambda row: digits(row["images_per_second"]),
  "efficiency": lambda row: _efficiency(row),
  "exposed communication, ms": lambda row: _milliseconds(
    row["exposed_seconds"]
  ),
  "all communication, ms": lambda row: _milliseconds(
    row["communication_seconds"]
  ),
  "memory of a GPU, GB": lambda row: digits(row["memory_bytes"] / 1e9),
  "device": lambda row: row["device"]["kind"],
  "jax": lambda row: row["versions"]["jax"],
  "date": lambda row: row["date"],
}

_QUESTION = ("task", "size", "remat", "dtype", "mode")
_ON = ("preset", "num_devices", "batch_size")


def newest(table: Sequence[rows.Row]) -> list[rows.Row]:
  """One row per question and accelerator; those of one family together."""
  found, families = {}, {}
  for row in table:
    if row["device"]["platform"] == "cpu":
      continue
    family = (*(row[key] for key in _QUESTION), row["device"]["kind"])
    families.setdefault(family, len(families))
    found[family, *(row[key] for key in _ON)] = row
  ranked = {
    (
      families[key[0]],
      # One device, then mesh by mesh.
      row["preset"] if row["num_devices"] > 1 else "",
      row["num_devices"],
    ): row
    for key, row in found.items()
  }
  return [ranked[key] for key in sorted(ranked)]


def with_scaling(text: str, benchmarks: Path) -> str:
  """A page's text with the table as the rows in that folder have it."""
  shown = newest(rows.read(benchmarks / "scaling.jsonl"))
  table = markdown.table(COLUMNS, shown) if shown else NO_ROWS
  return markdown.between(text, table, "scaling table")


def _efficiency(row: rows.Row) -> str:
  if row["efficiency"] is None:
    return "–"
  return f"{row['efficiency']:.1%}{'' if row['is_same_run'] else '*'}"


def _milliseconds(seconds: float | None) -> str:
  return "–" if seconds is None else digits(1e3 * seconds)
