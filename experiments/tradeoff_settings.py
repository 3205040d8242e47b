"""The settings that `experiments.tradeoff` tries, and which it compares.

1. A grid of AR steps, sampler, start and diffusion steps, and some settings
   whose diffusion steps change over the AR steps.
2. Baselines; and candidates, chosen on the first pass over the grid.
"""

from typing import Any

from experiments import rows
from marjax.generate.plan import head_steps

Changes = dict[str, Any]
"""Of a checkpoint's settings, nested as they are."""

GRID = {
  (16, "ancestral"): {
    999: (50, 100),
    980: (10, 20),
    950: (5, 10, 20, 50, 100),
    900: (5, 10, 20),
  },
  (16, "ddim"): {
    999: (100,),
    980: (20,),
    950: (5, 10, 20, 50),
    900: (5, 10, 20),
  },
  (8, "ancestral"): {950: (5, 10, 20, 50), 900: (10, 20)},
  (8, "ddim"): {950: (5, 10, 20), 900: (5, 10, 20)},
  (4, "ancestral"): {950: (10, 20, 50)},
  (4, "ddim"): {950: (5, 10, 20)},
}
"""(AR steps, sampler) → start → diffusion steps, without hopeless corners."""

CHANGING = (
  ("ancestral", 50, 5),
  ("ancestral", 20, 5),
  ("ancestral", 5, 20),
  ("ddim", 20, 5),
)
"""Sampler, first and final diffusion steps, over 16 AR steps from 950."""


HOTTER = (1.1, 1.15, 1.2)
"""Temperatures above the checkpoint's, of 16 × 10 from 950: so few steps vary
too little."""


def setting(
  ar: int,
  first: int,
  start: int,
  sampler: str,
  final: int | None = None,
  temperature: float | None = None,
) -> Changes:
  """One setting; what it leaves open is as the checkpoint says."""
  head = {"num_steps": first, "final_num_steps": final}
  head |= {"start": start, "sampler": sampler}
  hotter = {} if temperature is None else {"temperature": temperature}
  return {"num_ar_steps": ar, **hotter, "head": head}


def grid() -> list[Changes]:
  """All settings of the first pass, the quickest first."""
  found = [
    setting(ar, steps, start, sampler)
    for (ar, sampler), starts in GRID.items()
    for start, numbers in starts.items()
    for steps in numbers
  ]
  found += [
    setting(16, first, 950, sampler, final)
    for sampler, first, final in CHANGING
  ]
  found += [
    setting(16, 10, 950, "ancestral", temperature=hotter) for hotter in HOTTER
  ]
  return sorted(found, key=head_evaluations)


BASELINES = (
  setting(16, 100, 999, "ancestral"),
  setting(16, 100, 950, "ancestral"),
)
"""As published, and with the start that suits a briefly trained head."""

CANDIDATES = (
  setting(16, 20, 980, "ddim"),
  setting(16, 20, 950, "ancestral", 5),
  setting(16, 10, 950, "ancestral"),
  setting(8, 10, 950, "ancestral"),
)
"""Chosen on the rows of seed 0, as the best for their evaluations."""


def name_of(changes: Changes) -> str:
  """AR steps × diffusion steps, start and sampler, and what else is set."""
  head, temperature = changes["head"], changes.get("temperature")
  final = head["final_num_steps"]
  arrow = "" if final is None else f"→{final}"
  sampler = {"ancestral": "ancestral", "ddim": "DDIM"}[head["sampler"]]
  hotter = "" if temperature is None else f", temperature {temperature:g}"
  return (
    f"{changes['num_ar_steps']} × {head['num_steps']}{arrow}"
    f" from {head['start']}, {sampler}{hotter}"
  )


def pace_of(row: rows.Row) -> tuple:
  """What the time of a row's settings depends on: numbers and sampler."""
  settings = row["settings"]
  return (
    settings["num_ar_steps"],
    settings["num_diffusion_steps"],
    settings.get("final_diffusion_steps"),
    settings["sampler"],
  )


def head_evaluations(changes: Changes) -> int:
  """Evaluations of the head for one image, one after the other."""
  head, num_ar_steps = changes["head"], changes["num_ar_steps"]
  final = head["final_num_steps"]
  return sum(head_steps(num_ar_steps, head["num_steps"], final))
