"""Tables in Markdown: a list of columns, each a heading and how a row fills it.

Numbers become text here and in the columns only, so a table never says more
digits than it should.
"""

from collections.abc import Callable, Iterable, Sequence
from statistics import mean, stdev
from typing import Any

from experiments import rows

Columns = dict[str, Callable[[Any], str]]

SCORES: Columns = {
  "label accuracy": lambda row: f"{row['label_accuracy']:.3f}",
  "Fréchet ratio": lambda row: f"{row['frechet_ratio']:.2f}",
  "near copies": lambda row: f"{row['near_copy_rate']:.3f}",
}


def table(columns: Columns, lines: Iterable[Any]) -> str:
  """With one line for each of the lines."""
  filled = [[fill(line) for fill in columns.values()] for line in lines]
  return of_text([list(columns), *filled])


def of_text(lines: Sequence[Sequence[str]]) -> str:
  """Of cells that are text; the first line is the heading."""
  lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(values: Sequence[float], digits: int | None = None) -> str:
  """Mean, and the standard deviation where there are several values.

  `digits` are those after the point; None for two digits of the deviation, or
  three of the value where there is none, and four after the point at most.
  """
  error = stdev(values) if len(values) > 1 else 0.0
  if digits is None:
    exact, most = (error, 1) if error else (abs(mean(values)), 2)
    power = int(f"{exact:.{most}e}".partition("e")[2])
    digits = max(0, min(most - power, 4))
  end = f" ± {error:.{digits}f}" if len(values) > 1 else ""
  rounded = round(mean(values), digits) + 0.0  # no minus before 0
  return f"{rounded:.{digits}f}{end}"


def digits(value: float) -> str:
  """Three significant digits, never as a power of ten above 1."""
  return f"{float(f'{value:.3g}'):.10g}"


def device(row: rows.Row) -> str:
  """Where a row was measured, in a few words."""
  found = row["device"]
  if found["platform"] == "cpu":
    return f"{found['cores']} cores of {found['processor']}"
  return f"{found['count']} × {found['kind']}"


def between(text: str, table: str, name: str) -> str:
  """A page's text with another table between the markers of that name.

  Raises:
    ValueError: the markers are not there, once each and in order.
  """
  start, end = (f"<!-- {word}{name} -->\n" for word in ("", "end of "))
  before, has_start, rest = text.partition(start)
  _, has_end, after = rest.partition(end)
  if not (has_start and has_end) or start in after or end in before + after:
    raise ValueError(
      f"there is no place for the table; expected {start.strip()} and, below"
      f" it, {end.strip()}, once each: put them back."
    )
  return f"{before}{start}\n{table}\n{end}{after}"
