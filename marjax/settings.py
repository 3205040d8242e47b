"""How to generate: steps, guidance, temperature, sampler.

A field left at None is filled from the checkpoint's own settings, and what the
checkpoint leaves open from `PUBLISHED`, the settings of the released program.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from marjax.head.reverse import ReverseSettings
from marjax.schema import check

_REVERSE_FIELDS = {
  "num_diffusion_steps": ("num_steps", 100),
  "start_timestep": ("start", 999),
  "spacing": ("spacing", "even"),
  "sampler": ("sampler", "ancestral"),
  "ddim_eta": ("ddim_eta", 0.0),
}


@dataclass(frozen=True)
class Settings:
  """Generation settings; None means "as the checkpoint says".

  Attributes:
    num_ar_steps: autoregressive steps, 1 .. number of tokens.
    num_diffusion_steps: network evaluations per token, 2 .. 1000.
    final_diffusion_steps: those of the last AR step's tokens; from the first
      step to the last the number changes evenly, in a few stages. Equal to
      num_diffusion_steps for the same number at every step; so is None, if the
      checkpoint says nothing.
    guidance_scale: 1 for none; larger follows the label more.
    guidance_schedule: "linear" grows from about 1 to the scale as tokens are
      revealed; "constant" uses the scale at every step.
    temperature: scales the noise of the reverse process; 0 .. 1 usually.
    sampler: "ancestral" or "ddim". ddim_eta: 0 .. 1.
    start_timestep: where the reverse process starts, up to 999.
    spacing: "even" (published) or "stride".
    num_buckets: segments of equal shape; more waste less, compile longer; if
      nothing says how many, as few as waste at most 3 %.
  """

  num_ar_steps: int | None = None
  num_diffusion_steps: int | None = None
  final_diffusion_steps: int | None = None
  guidance_scale: float | None = None
  guidance_schedule: Literal["linear", "constant"] | None = None
  temperature: float | None = None
  sampler: Literal["ancestral", "ddim"] | None = None
  ddim_eta: float | None = None
  start_timestep: int | None = None
  spacing: Literal["even", "stride"] | None = None
  num_buckets: int | None = None

  def __post_init__(self):
    for name in ("guidance_scale", "temperature"):
      value = getattr(self, name)
      check(
        value is None or (math.isfinite(value) and value >= 0),
        f"{name} is {value}; expected a finite number, 0 or more.",
      )
    for name in ("num_ar_steps", "num_buckets"):
      value = getattr(self, name)
      check(
        value is None or value >= 1, f"{name} is {value}; expected 1 or more."
      )
    check(
      self.guidance_schedule in (None, "linear", "constant"),
      f"guidance_schedule is {self.guidance_schedule!r}; expected 'linear' or"
      " 'constant'.",
    )
    filled = {
      field: value if getattr(self, name) is None else getattr(self, name)
      for name, (field, value) in _REVERSE_FIELDS.items()
    }
    ReverseSettings(**filled)
    final, start = self.final_diffusion_steps, filled["start"]
    check(
      final is None or 2 <= final <= start + 1,
      f"final_diffusion_steps is {final}; expected 2 to {start + 1} for a"
      f" reverse process that starts at {start}.",
    )

  def over(self, base: "Settings") -> "Settings":
    """These settings, with what is None taken from `base`."""
    given = {
      name: value
      for name, value in dataclasses.asdict(self).items()
      if value is not None
    }
    return dataclasses.replace(base, **given)

  def resolved(self) -> "Settings":
    """These settings, with what is None taken from `PUBLISHED`."""
    return self.over(PUBLISHED)

  def reverse(self) -> ReverseSettings:
    """The part that concerns one token's reverse process."""
    full = self.resolved()
    return ReverseSettings(
      **{
        field: getattr(full, name)
        for name, (field, _) in _REVERSE_FIELDS.items()
      }
    )


PUBLISHED = Settings(
  num_ar_steps=64,
  num_diffusion_steps=100,
  guidance_scale=1.0,
  guidance_schedule="linear",
  temperature=1.0,
  sampler="ancestral",
  ddim_eta=0.0,
  start_timestep=999,
  spacing="even",
)
"""The released program's settings, without guidance."""

QUICK = Settings(
  num_diffusion_steps=10,
  start_timestep=950,
  spacing="even",
  sampler="ancestral",
)
"""A tenth of the published evaluations of the head; AR steps, guidance and
temperature stay the checkpoint's.

Measured on the digits model only (`experiments.tradeoff`): far better than 100
steps from 999, a little worse than 100 steps from 950. Nothing is known of it
for published weights, which were scored with a start at 999.
"""

PRESETS = {"quick": QUICK}
"""Settings by a name that every checkpoint knows, unless it has its own."""
