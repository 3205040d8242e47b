"""Tables of `benchmarks.run`: speed, where the time goes, and what limits it.

1. Rows of one program on one kind of device are told apart by task, size,
   batch, dtype and settings; the newest of them counts. Its compile times are
   those of the newest cold and of the newest warm process.
2. docs/speed.md shows what was measured on accelerators on the newest day of
   each task, size, batch and kind of device, between two markers.

A row that lacks a number, because an older benchmark made it, has a dash there.
"""

from collections.abc import Sequence

from experiments import markdown, rows
from experiments.markdown import Columns, digits

NAMES = {
  "base": "MAR-B",
  "large": "MAR-L",
  "huge": "MAR-H",
  "causal_large": "causal L",
  "guided_large": "guided L",
}

_PARTS = ("seconds_transformer", "seconds_head", "seconds_rest")
_FLOORS = ("matmul", "weight", "cache")
_SETTINGS = ("num_ar_steps", "num_diffusion_steps", "guidance_scale")


def columns() -> Columns:
  """Heading → how a row fills it."""
  return {
    "task": task,
    "model": lambda row: NAMES.get(row["size"], row["size"]),
    "batch": lambda row: str(row["batch_size"]),
    "dtype": lambda row: row["dtype"],
    "ms": lambda row: digits(1e3 * row["seconds"]),
    "transformer / head / rest, ms": _split,
    "images/s": lambda row: digits(row["images_per_second"]),
    "ms an image": lambda row: digits(1e3 / row["images_per_second"]),
    "share of the floor": _share,
    "floor: arithmetic / weights / caches, ms": _floors,
    "memory, GB": _memory,
    "compile, s: cold / warm": lambda row: " / ".join(
      digits(row[key]) if row[key] else "–" for key in ("cold", "warm")
    ),
    "device": markdown.device,
    "date": lambda row: row["date"],
  }


def task(row: rows.Row) -> str:
  """What was timed, with the settings that its time depends on."""
  if row["task"] == "train":
    latents = ", cached latents" if row.get("data") == "latents" else ""
    remat = row.get("remat", "full")
    head = _of_head(row.get("head", "diffusion"))
    return f"training step{head}{latents}, remat {remat}"
  settings = row["settings"]
  steps, evaluations, guidance = (settings[name] for name in _SETTINGS)
  final = settings.get("final_diffusion_steps")
  evaluations = f"{evaluations} … {final}" if final else evaluations
  guided = f", guidance {guidance:g}" if guidance != 1 else ""
  head = _of_head(settings.get("kind", "diffusion"))
  return f"{steps} × {evaluations} steps{head}{guided}"


def _of_head(kind: str) -> str:
  """Which head it was, if not the usual one."""
  return "" if kind == "diffusion" else f", {kind} head"


def newest(table: Sequence[rows.Row]) -> list[rows.Row]:
  """One row per program and device, with its `cold` and `warm` compile times.

  Both are of the day of the row.
  """
  found = {}
  for row in table:
    found.setdefault(_program(row), []).append(row)
  return [_joined(group) for group in found.values()]


def on_accelerators(table: Sequence[rows.Row]) -> list[rows.Row]:
  """Those rows, of the newest day of each measurement and device, sorted."""
  table = [row for row in table if row["device"]["platform"] != "cpu"]
  days = {}
  for row in table:
    key = _measurement(row)
    days[key] = max(days.get(key, ""), row["date"])
  return sorted(
    (row for row in table if row["date"] == days[_measurement(row)]), key=_rank
  )


def _rank(row) -> tuple:
  """Training first, small models first."""
  return (row["task"] != "train", row["parameters"]["all"], row["batch_size"])


def _measurement(row) -> tuple:
  device = str(sorted(row["device"].items()))
  return (row["task"], row["size"], row["batch_size"], device)


def _program(row) -> tuple:
  given = row.get("settings", {}).items()
  return (
    *_measurement(row),
    row["dtype"],
    task(row),
    # Older rows lack settings that newer ones have as None.
    str(sorted(item for item in given if item[1] is not None)),
  )


def _joined(group: list[rows.Row]) -> rows.Row:
  is_warm = [row.get("cache") == "warm" for row in group]
  cold, warm = (
    [row for row, found in zip(group, is_warm, strict=True) if found == wanted]
    for wanted in (False, True)
  )
  shown = (cold or warm)[-1]
  warm = [row for row in warm if row["date"] == shown["date"]]
  return {
    **shown,
    "cold": cold[-1]["compile_seconds"] if cold else None,
    "warm": warm[-1]["compile_seconds"] if warm else None,
  }


def _split(row) -> str:
  if _PARTS[0] not in row:
    return "–"
  return " / ".join(digits(1e3 * row[name]) for name in _PARTS)


def _share(row) -> str:
  """Above 100 % if arrays stayed on the chip that floors say are read."""
  return f"{row['share_of_floor']:.0%}" if "share_of_floor" in row else "–"


def _floors(row) -> str:
  """Of each floor its own time; of training there is one."""
  numbers = [row.get(f"floor_{name}_seconds") for name in _FLOORS]
  if numbers[0] is None:
    return "–"
  return " / ".join("–" if n is None else digits(1e3 * n) for n in numbers)


def _memory(row) -> str:
  """The peak that the device counted, else what the compiler reserved."""
  counted = row.get("peak_memory_bytes") or row.get("memory_bytes")
  return digits(counted / 1e9) if counted else "–"
