"""Memory of one chip: what it has, and what a program takes of it."""

import os
import re

from marjax.parallel.chips import chip_of
from marjax.preflight.programs import Program


def limit(devices: list) -> float | None:
  """Bytes of its memory that a program can have of each device, if known."""
  chip = chip_of(devices[0])
  if chip:
    return chip.memory
  if devices[0].platform == "cpu":
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return whole / len(devices)
  return (devices[0].memory_stats() or {}).get("bytes_limit")


def taken(program: Program) -> dict[str, float]:
  """Bytes on one chip while the program runs, by what takes them."""
  sizes = program.compiled.memory_analysis()
  others = sizes.argument_size_in_bytes - sum(program.held.values())
  results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
  return {
    **program.held,
    "other arguments": max(0.0, float(others)),
    "temporaries": sizes.temp_size_in_bytes + max(0.0, float(results)),
    "program": float(sizes.generated_code_size_in_bytes),
  }


def needed_bytes(message: str) -> float | None:
  """What XLA says that a program needs of a chip's memory, if it says so."""
  units = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
  for form in (
    r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm",
    r"\(([\d.]+)([KMGT])\) exceeds available HBM",
  ):
    found = re.search(form, message)
    if found:
      return float(found[1]) * units[found[2]]
  return None
