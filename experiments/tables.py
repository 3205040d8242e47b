"""Markdown tables of the committed results.

    python -m experiments.tables            print them
    python -m experiments.tables --write    and write results/tables.md, and
                                            those in docs and benchmarks

Each table is a list of columns: heading, and how a row fills it. Numbers are
printed here only, so a table never says more digits than it should. Edits have
a line for all their seeds: mean ± standard deviation.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import (
  claims,
  heads_tables,
  markdown,
  precision_tables,
  programs,
  rows,
  scaling_tables,
  scoreboard_pictures,
  speed_tables,
  studies_plan,
  studies_tables,
  table1_tables,
  tradeoff_tables,
)
from experiments.markdown import Columns, digits
from marjax import outputs

RESULTS = Path("experiments/results")
BENCHMARKS = Path("benchmarks/results/rows.jsonl")

SAMPLERS: Columns = {
  "sampler": lambda row: row["name"],
  **markdown.SCORES,
  "seconds": lambda row: f"{row['seconds']:.1f}",
}

EDITS: Columns = {
  "edit": lambda row: row["edit"],
  "region": lambda row: row["region"],
  "drawn": lambda row: f"{row['share_drawn']:.0%}",
  "label asked for": lambda row: _spread(row["asked_label_accuracy"]),
  "own label": lambda row: _spread(row["own_label_accuracy"]),
  "own label, region grey": lambda row: f"{row['grey_accuracy']:.3f}",
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
  "bound, s": lambda row: digits(row["bound"]["seconds"]),
  "use of the peak then": lambda row: f"{row['bound']['utilisation']:.0%}",
}

_STATE = ("parameters", "averages", "optimizer")

PARTS: Columns = {
  "model": lambda row: row["config"],
  "chips": lambda row: row["chips"],
  "part": lambda row: row["part"],
  "TFLOP an image": lambda row: digits(row["flops_per_image"] / 1e12),
  "× needed": lambda row: f"{row['program_flops'] / row['useful_flops']:.2f}",
  "GB of a chip": lambda row: digits(row["memory_traffic"] / 1e9),
  "FLOP a byte": lambda row: digits(
    row["program_flops"] / row["memory_traffic"]
  ),
  "arithmetic, s": lambda row: digits(row["bound"]["arithmetic"]),
  "memory, s": lambda row: digits(row["bound"]["memory"]),
}


def tables(results: Path, benchmarks: Path) -> str:
  """Every table whose rows are there, with what it shows above it."""
  parts = []
  table = rows.newest(rows.read(results / "samplers.jsonl"), "name", "seed")
  if table:
    parts.append(f"{_caption(table)}\n\n{markdown.table(SAMPLERS, table)}")
  edits = rows.read(results / "edits.jsonl")
  if edits:
    lines = markdown.table(EDITS, over_seeds(edits))
    parts.append(f"{_caption_of_edits(edits)}\n\n{lines}")
  tradeoff = rows.read(results / "tradeoff.jsonl")
  parts += [
    f"{caption}\n\n{markdown.table(columns, lines)}"
    for caption, columns, lines in tradeoff_tables.tables(tradeoff)
  ]
  preflight = newest(rows.read(results / "preflight.jsonl"))
  if preflight:
    parts.append(
      f"{_PREFLIGHT_CAPTION}\n\n{markdown.table(PREFLIGHT, preflight)}"
    )
  lines = part_by_part(preflight)
  if lines:
    parts.append(f"{_PARTS_CAPTION}\n\n{markdown.table(PARTS, lines)}")
  speed = speed_tables.newest(rows.read(benchmarks))
  if speed:
    parts.append(
      "Medians after warm-up; see benchmarks/README.md.\n\n"
      f"{markdown.table(speed_tables.columns(), speed)}"
    )
  return "\n".join(parts)


def with_speed_and_scaling(text: str, benchmarks: Path) -> str:
  """A page's text with both tables as the rows in that folder have them."""
  speed = speed_tables.newest(rows.read(benchmarks / "rows.jsonl"))
  speed = speed_tables.on_accelerators(speed)
  table = markdown.table(speed_tables.columns(), speed)
  text = markdown.between(text, table, "speed table")
  return scaling_tables.with_scaling(text, benchmarks)


def with_precision(text: str, benchmarks: Path) -> str:
  """A page's text with the table of `benchmarks.precision`, likewise."""
  found = precision_tables.newest(rows.read(benchmarks / "precision.jsonl"))
  table = markdown.table(precision_tables.columns(), found)
  return markdown.between(text, table, "precision table")


def with_scoreboard(text: str, benchmarks: Path) -> str:
  """A page's text with both tables of `experiments.scoreboard`, likewise."""
  del benchmarks
  for name in ("scoreboard", "photos64"):
    own = rows.read(RESULTS / f"{name}.jsonl")
    table = scoreboard_pictures.of_settings(own)
    text = markdown.between(text, table, name)
  return text


def with_studies(text: str, benchmarks: Path) -> str:
  """A page's text with those tables of `experiments.studies` it has markers of.

  Studies share rows, so that one which has not been run may have some.
  """
  del benchmarks
  table = rows.read(RESULTS / "studies.jsonl")
  asked = studies_plan.Asked(RESULTS)
  for name, study in claims.STUDIES.items():
    if f"<!-- {name} -->" not in text:
      continue
    own, same = studies_plan.alike(name, table, asked, "trained_as")
    if own:
      real = studies_tables.controls(study, own, same, asked.num_images)
      if study.is_timed:
        own = studies_tables.timed(own, table)
      shown = studies_tables.of_cells(own, real)
      text = markdown.between(text, shown, name)
  return text


PAGES = {
  Path("README.md"): heads_tables.with_heads,
  Path("docs/heads.md"): heads_tables.with_heads,
  Path("docs/table1.md"): table1_tables.with_table1,
  Path("docs/scoreboard.md"): with_scoreboard,
  Path("docs/studies.md"): with_studies,
  Path("docs/speed.md"): with_speed_and_scaling,
  Path("benchmarks/README.md"): with_precision,
}
"""Pages with a table between markers, and what puts it there."""


def newest(table: Sequence[rows.Row]) -> list[rows.Row]:
  """The last of all preflights of one program, where the first stood."""
  asked = ("config", "topology", "program")
  found = {tuple(row[name] for name in asked): row for row in table}
  return list(found.values())


def part_by_part(table: Sequence[rows.Row]) -> list[rows.Row]:
  """One row per part of the model, and one of all, of each generation."""
  return [
    {
      **part,
      "config": row["config"],
      "chips": f"{row['num_chips']}, {row['topology']}",
      "part": name,
      "flops_per_image": part["program_flops"]
      * row["num_chips"]
      / row["batch_size"],
    }
    for row in table
    if row.get("parts")
    for name, part in (*row["parts"].items(), ("in all", row))
  ]


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


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Prints the tables, and writes them if asked."""
  parser = programs.parser(__spec__, __doc__)
  parser.add_argument("--write", action="store_true", help="write them too")
  args = parser.parse_args(argv)
  for page in PAGES:
    if args.write and not page.exists():
      raise FileNotFoundError(
        f"there is no {page} here; expected the root of a checkout."
      )
  text = tables(RESULTS, BENCHMARKS)
  print(text, end="")
  if args.write:
    # Generated from the committed rows, so nothing is lost.
    outputs.write(RESULTS / "tables.md", text.encode(), overwrite=True)
    for page, update in PAGES.items():
      text = update(page.read_text(), BENCHMARKS.parent)
      outputs.write(page, text.encode(), overwrite=True)


def _caption(table: Sequence[rows.Row]) -> str:
  first = table[0]
  return (
    f"{first['num_images']} digits, seed {first['seed']}, {_training(table)};"
    " the classifier's accuracy on real test images is"
    f" {first['real_test_accuracy']:.3f}; {_place(first)}."
  )


def _caption_of_edits(table: Sequence[rows.Row]) -> str:
  first = table[0]
  return (
    f"How often the classifier sees a label in {first['num_images']} real test"
    f" digits, edited; seeds 0 to {max(row['seed'] for row in table)};"
    f" {_training(table)}; on the digits as they are it sees their own in"
    f" {first['real_test_accuracy']:.3f}; {_place(first)}."
  )


def _training(table: Sequence[rows.Row]) -> str:
  steps = sorted({row["steps_trained"] for row in table})
  return f"{' or '.join(map(str, steps))} steps of training"


def _place(row: rows.Row) -> str:
  return f"{markdown.device(row)}, jax {row['versions']['jax']}"


def _spread(values: Sequence[float | None]) -> str:
  """Mean ± standard deviation; a dash where there is nothing to see."""
  if None in values:
    return "–"
  return markdown.spread(values, 3)


_PREFLIGHT_CAPTION = (
  "Compiled by XLA's TPU or GPU compiler, run nowhere. Memory of one chip in"
  " GiB; exchanges of one step: how many, and GB sent by each chip. The bound"
  " is the longest of arithmetic, memory traffic and exchange, each by itself."
)

_PARTS_CAPTION = (
  "Generation by part of the model, the same programs: arithmetic of an image"
  " and how much more it is than needed, because of padding; memory traffic (an"
  " estimate) of one chip for all its images; and what each takes by itself at"
  " the chip's peak. Rest: embeddings, and writing tokens."
)


def _gib(num_bytes: float) -> str:
  return f"{num_bytes / 2**30:.2f}"


def _moved(row: rows.Row, *kinds: str) -> str:
  found = [
    row["collectives"][kind] for kind in kinds if kind in row["collectives"]
  ]
  sent = sum(exchange["sent_bytes"] for exchange in found)
  return f"{sum(e['count'] for e in found)}, {digits(sent / 1e9)}"


if __name__ == "__main__":
  sys.exit(main())
