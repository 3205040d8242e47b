"""The table of heads: mean ± standard deviation over trainings, by setting."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

from experiments import rows, speed_tables

RESULTS = Path("experiments/results/heads.jsonl")
START, END = "<!-- heads table -->\n", "<!-- end of heads table -->\n"
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
  return [groups[key] for key in sorted(groups)]


def columns() -> dict[str, Callable[[list[rows.Row]], str]]:
  """Heading → how a group of rows fills it."""

  def spread(key: str, digits: int):
    def fill(group: list[rows.Row]) -> str:
      values = [row[key] for row in group]
      error = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
      return f"{mean(values):.{digits}f}{error}"

    return fill

  return {
    "head": lambda group: group[0]["head"],
    "evaluations": lambda group: str(
      group[0]["settings"]["num_diffusion_steps"]
    ),
    **{name: spread(*score) for name, score in SCORES.items()},
  }


def markdown() -> str:
  """The table, of the committed rows."""
  fills = columns()
  lines = [list(fills), ["---"] * len(fills)]
  lines += [
    [fill(group) for fill in fills.values()]
    for group in grouped(rows.read(RESULTS))
  ]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_heads(text: str, benchmarks: Path) -> str:
  """A page's text with the table of heads as the rows have it."""
  del benchmarks
  return speed_tables.between(text, markdown(), START, END)
