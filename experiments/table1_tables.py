"""The table of `experiments.table1`: mean ± standard deviation over trainings.

A run's score is the mean over its seeds of generation; the rows of the sweep,
with a seed of their own, only say which guidance was chosen.
"""

from pathlib import Path
from statistics import mean

from experiments import markdown, rows
from experiments.heads_tables import SCORES
from experiments.table1 import RESULTS, SEEDS, names

WORDS = {
  "ar_raster": ("raster", "causal"),
  "ar_random": ("random", "causal"),
  "mar_one": ("random", "bidirectional"),
  "mar": ("random", "bidirectional"),
  "guided": ("random", "causal memory, queries"),
}


def of_runs(table: list[rows.Row], score: str) -> list[float]:
  """The mean score of each run of a cell, over its seeds of generation."""
  runs = sorted({row["run"] for row in table})
  return [
    mean(row[score] for row in table if row["run"] == run) for run in runs
  ]


def line(name: str, table: list[rows.Row]) -> list[str]:
  """What the table says of a cell; `table`: its rows but those of the sweep."""
  cell, loss = name.removesuffix("_ce"), "Diffusion Loss"
  settings = table[0]["settings"]
  return [
    *WORDS[cell],
    str(settings["num_ar_steps"]),
    "cross-entropy" if name.endswith("_ce") else loss,
    f"{settings['guidance_scale']:g}",
    *(
      markdown.spread(of_runs(table, score), digits)
      for score, digits in SCORES.values()
    ),
    f"{table[0]['num_parameters']:,}".replace(",", " "),
  ]


def of_cells() -> str:
  """The table, of the committed rows."""
  heading = ["order", "attention", "steps", "loss", "guidance", *SCORES]
  lines = [[*heading, "parameters"]]
  final = [row for row in rows.read(RESULTS) if row["seed"] in SEEDS]
  for name in names():
    own = [row for row in final if row["cell"] == name]
    # With other runs another guidance may have been chosen since.
    own = [row for row in own if row["settings"] == own[-1]["settings"]]
    own = rows.newest(own, "run", "seed")
    lines += [line(name, own)] if own else []
  return markdown.of_text(lines)


def with_table1(text: str, benchmarks: Path) -> str:
  """A page's text with the table as the rows have it."""
  del benchmarks
  return markdown.between(text, of_cells(), "table 1")
