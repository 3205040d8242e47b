"""The settings that `experiments.tradeoff` tries, and which it compares.

1. A grid of AR steps, sampler, start and diffusion steps, and some settings
   whose diffusion steps change over the AR steps.
2. Baselines; and candidates, chosen on the first pass over the grid.
"""

from experiments import rows
from marjax.generate.plan import diffusion_steps
from marjax.generate.settings import Settings

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
) -> Settings:
  """One setting; what it leaves open is as the checkpoint says."""
  return Settings(
    num_ar_steps=ar,
    num_diffusion_steps=first,
    final_diffusion_steps=final,
    start_timestep=start,
    sampler=sampler,
    temperature=temperature,
  )


def grid() -> list[Settings]:
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


def name_of(settings: Settings) -> str:
  """AR steps × diffusion steps, start and sampler, and what else is set."""
  final, temperature = settings.final_diffusion_steps, settings.temperature
  arrow = "" if final is None else f"→{final}"
  sampler = {"ancestral": "ancestral", "ddim": "DDIM"}[settings.sampler]
  hotter = "" if temperature is None else f", temperature {temperature:g}"
  return (
    f"{settings.num_ar_steps} × {settings.num_diffusion_steps}{arrow}"
    f" from {settings.start_timestep}, {sampler}{hotter}"
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


def head_evaluations(settings: Settings) -> int:
  """Evaluations of the head for one image, one after the other."""
  return sum(
    diffusion_steps(
      settings.num_ar_steps,
      settings.num_diffusion_steps,
      settings.final_diffusion_steps,
    )
  )
