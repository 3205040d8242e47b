"""Tables of `experiments.tradeoff`: the best of each cost, and paired tests.

1. Scores of seed 0 chose the candidates: of those, the front is shown, the
   settings that no other one beats with as few evaluations or fewer.
2. Scores of the other seeds had no part in that: mean ± standard deviation.
3. Each candidate against each baseline, seed by seed.

Seconds are those of the newest timing of that number of steps.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from experiments import markdown, paired, rows, tradeoff_settings
from experiments.markdown import Columns, spread

BASELINES = [
  tradeoff_settings.name_of(settings)
  for settings in tradeoff_settings.BASELINES
]


class Table(NamedTuple):
  """One table: what it shows, its columns and its lines."""

  caption: str
  columns: Columns
  lines: list[Any]


class Group(NamedTuple):
  """One setting on the fresh seeds: a score is a list, in order of seeds."""

  name: str
  first: rows.Row
  seeds: list[int]
  frechet_ratio: list[float]
  label_accuracy: list[float]


def tables(table: Sequence[rows.Row]) -> list[Table]:
  """The tables whose rows are there."""
  scored = newest_scores(table)
  if not scored:
    return []
  times = newest_times(table)
  chosen_on = [row for row in scored if row["seed"] == 0]
  fresh = groups(row for row in scored if row["seed"] != 0)
  found = [
    Table(
      "Fewer evaluations, seed 0: of all settings tried, those that no other"
      " one beats in Fréchet ratio with as few evaluations or fewer, and the"
      f" baselines. {_of(chosen_on)} {markdown.device(chosen_on[0])}.",
      {"setting": lambda row: row["name"], **_costs(times), **markdown.SCORES},
      with_baselines(front(chosen_on), chosen_on),
    )
  ]
  if fresh:
    seeds = sorted({seed for group in fresh for seed in group.seeds})
    found += [
      Table(
        "The same on seeds that had no part in the choice,"
        f" {seeds[0]} to {seeds[-1]}: mean ± standard deviation.",
        {
          "setting": lambda group: group.name,
          **_costs(times, lambda group: group.first),
          "label accuracy": lambda group: spread(group.label_accuracy, 3),
          "Fréchet ratio": lambda group: spread(group.frechet_ratio, 2),
        },
        fresh,
      ),
      Table(
        "Differences seed by seed, with 95 % intervals; equal means within"
        f" ±{paired.MARGINS['frechet_ratio']} of the ratio, within"
        f" ±{paired.MARGINS['label_accuracy']} of the accuracy.",
        _PAIRED,
        comparisons(fresh),
      ),
    ]
  return found


def newest_scores(table: Iterable[rows.Row]) -> list[rows.Row]:
  """The last scores of each setting and seed."""
  scored = (row for row in table if row["kind"] == "scores")
  return rows.newest(scored, "name", "seed")


def newest_times(table: Iterable[rows.Row]) -> dict[tuple, rows.Row]:
  """The last timing of each pace."""
  return {
    tradeoff_settings.pace_of(row): row
    for row in table
    if row["kind"] == "time"
  }


def groups(scored: Iterable[rows.Row]) -> list[Group]:
  """Rows of one setting together, baselines first, then by cost."""
  by_name: dict[str, list[rows.Row]] = {}
  for row in sorted(scored, key=lambda row: row["seed"]):
    by_name.setdefault(row["name"], []).append(row)
  found = [
    Group(
      name,
      part[0],
      *(
        [row[key] for row in part]
        for key in ("seed", "frechet_ratio", "label_accuracy")
      ),
    )
    for name, part in by_name.items()
  ]
  return sorted(
    found,
    key=lambda group: (
      BASELINES.index(group.name)
      if group.name in BASELINES
      else len(BASELINES),
      -group.first["head_evaluations"],
    ),
  )


def front(scored: Iterable[rows.Row]) -> list[rows.Row]:
  """Rows with a better ratio than every row as cheap, the cheapest first."""
  found: list[rows.Row] = []
  key = ("head_evaluations", "frechet_ratio")
  for row in sorted(scored, key=lambda row: [row[name] for name in key]):
    if not found or row["frechet_ratio"] < found[-1]["frechet_ratio"]:
      found.append(row)
  return found


def with_baselines(
  front: list[rows.Row], scored: Iterable[rows.Row]
) -> list[rows.Row]:
  """The baselines, if they are not in front, below it."""
  more = [
    row for row in scored if row["name"] in BASELINES and row not in front
  ]
  return [*front, *more]


def comparisons(fresh: Sequence[Group]) -> list[dict[str, Any]]:
  """Every setting against every baseline, on the seeds that both have."""
  found = []
  for group in fresh:
    for other in fresh:
      seeds = [seed for seed in group.seeds if seed in other.seeds]
      if (
        other.name not in BASELINES or group.name in BASELINES or len(seeds) < 2
      ):
        continue
      line = {"name": group.name, "against": other.name, "seeds": len(seeds)}
      for score in paired.MARGINS:
        ours, theirs = (
          [getattr(one, score)[one.seeds.index(seed)] for seed in seeds]
          for one in (group, other)
        )
        line[score] = paired.difference(ours, theirs)
      found.append(line)
  return found


_PAIRED: Columns = {
  "setting": lambda line: line["name"],
  "against": lambda line: line["against"],
  "seeds": lambda line: str(line["seeds"]),
  "Fréchet ratio": lambda line: _difference(line, "frechet_ratio", 2),
  "p": lambda line: f"{line['frechet_ratio'].p:.2g}",
  "it is": lambda line: paired.reading(line["frechet_ratio"], "frechet_ratio"),
  "label accuracy": lambda line: _difference(line, "label_accuracy", 4),
  "p of that": lambda line: f"{line['label_accuracy'].p:.2g}",
  "that is": lambda line: paired.reading(
    line["label_accuracy"], "label_accuracy"
  ),
}


def _costs(times: dict[tuple, rows.Row], row_of=lambda line: line) -> Columns:
  """Evaluations, arithmetic and time; a dash where nothing was timed."""

  def milliseconds(line: Any) -> str:
    time = times.get(tradeoff_settings.pace_of(row_of(line)))
    return f"{1e3 * time['seconds_per_image']:.1f}" if time else "–"

  return {
    "evaluations": lambda line: str(row_of(line)["head_evaluations"]),
    "MFLOP an image": lambda line: (
      f"{row_of(line)['flops_per_image'] / 1e6:.0f}"
    ),
    "ms an image": milliseconds,
  }


def _difference(line: dict[str, Any], score: str, digits: int) -> str:
  found = line[score]
  return (
    f"{found.mean:+.{digits}f}"
    f" ({found.low:+.{digits}f} to {found.high:+.{digits}f})"
  )


def _of(scored: Sequence[rows.Row]) -> str:
  first = scored[0]
  return (
    f"{first['num_images']} digits each, guidance"
    f" {first['settings']['guidance_scale']:g}, temperature"
    f" {first['settings']['temperature']:g}, {first['steps_trained']} steps of"
    " training."
  )
