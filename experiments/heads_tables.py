"""The table of heads: mean ± standard deviation over trainings, by setting."""

from collections.abc import Sequence
from pathlib import Path

from experiments import markdown, rows
from experiments.markdown import Columns

RESULTS = Path("experiments/results/heads.jsonl")
SCORES = {
  "label accuracy": ("label_accuracy", 3),
  "Fréchet ratio": ("frechet_ratio", 2),
  "near copies": ("near_copy_rate", 3),
}


def grouped(table: Sequence[rows.Row]) -> list[list[rows.Row]]:
  """Rows of one head and one number of evaluations together."""
  groups: dict[tuple, list[rows.Row]] = {}
  for row in table:
    key = (row["head"], -row["settings"]["num_diffusion_steps"])
    groups.setdefault(key, []).append(row)
  return [rows.newest(groups[key], "seed") for key in sorted(groups)]


def columns() -> Columns:
  """Heading → how a group of rows fills it."""

  def spread(key: str, digits: int):
    return lambda group: markdown.spread([row[key] for row in group], digits)

  return {
    "head": lambda group: group[0]["head"],
    "evaluations": lambda group: str(
      group[0]["settings"]["num_diffusion_steps"]
    ),
    **{name: spread(*score) for name, score in SCORES.items()},
  }


def with_heads(text: str, benchmarks: Path) -> str:
  """A page's text with the table of heads as the committed rows have it."""
  del benchmarks
  table = markdown.table(columns(), grouped(rows.read(RESULTS)))
  return markdown.between(text, table, "heads table")
