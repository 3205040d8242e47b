"""How to generate: steps, guidance, temperature, sampler.

A field left at None is filled from the checkpoint's own settings, and what the
checkpoint leaves open from `PUBLISHED`, the settings of the released program.
"""

import dataclasses
from typing import Annotated, Any, Literal

from marjax import schema
from marjax.head.reverse import Eta, ReverseSettings, Steps, Timestep
from marjax.schema import Range, check

_REVERSE_FIELDS = {
  "num_diffusion_steps": ("num_steps", 100),
  "start_timestep": ("start", 999),
  "spacing": ("spacing", "even"),
  "sampler": ("sampler", "ancestral"),
  "ddim_eta": ("ddim_eta", 0.0),
}

ARSteps = Annotated[int, Range(1, 1024)]
"""Of a generation; its plan is made of all ways to cut them."""


@schema.config
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

  num_ar_steps: ARSteps | None = None
  num_diffusion_steps: Steps | None = None
  final_diffusion_steps: Steps | None = None
  guidance_scale: Annotated[float, Range(0, 1000)] | None = None
  guidance_schedule: Literal["linear", "constant"] | None = None
  temperature: Annotated[float, Range(0, 100)] | None = None
  sampler: Literal["ancestral", "ddim"] | None = None
  ddim_eta: Eta | None = None
  start_timestep: Timestep | None = None
  spacing: Literal["even", "stride"] | None = None
  num_buckets: ARSteps | None = None

  def __post_init__(self):
    filled = {
      field: value if getattr(self, name) is None else getattr(self, name)
      for name, (field, value) in _REVERSE_FIELDS.items()
    }
    ReverseSettings(**filled)
    final, start = self.final_diffusion_steps, filled["start"]
    check(
      final is None or final <= start + 1,
      f"final_diffusion_steps is {final}; expected 2 to {start + 1} for a"
      f" reverse process that starts at {start}.",
    )

  def __repr__(self) -> str:
    fields = ", ".join(f"{key}={value!r}" for key, value in self._set().items())
    return f"Settings({fields})"

  def over(self, base: "Settings") -> "Settings":
    """These settings, with what is None taken from `base`."""
    return dataclasses.replace(base, **self._set())

  def resolved(self, num_tokens: int | None = None) -> "Settings":
    """These settings, with what is None taken from `PUBLISHED`.

    Args:
      num_tokens: of the model; a smaller one has as many AR steps as tokens.

    Raises:
      ValueError: as `check_fits`.
    """
    full = self.over(PUBLISHED)
    if num_tokens is None:
      return full
    if self.num_ar_steps is None:
      steps = min(full.num_ar_steps, num_tokens)
      return dataclasses.replace(full, num_ar_steps=steps)
    self.check_fits(num_tokens)
    return full

  def check_fits(self, num_tokens: int, where: str = "") -> None:
    """Refuses more AR steps than an image has tokens, with a ValueError."""
    steps = self.num_ar_steps
    check(
      steps is None or steps <= num_tokens,
      f"{where}{'.' if where else ''}num_ar_steps is {steps}; expected 1 to"
      f" {num_tokens}, because each step reveals at least one of the image's"
      f" {num_tokens} tokens.",
    )

  def _set(self) -> dict[str, Any]:
    """The fields that are not None."""
    return {
      name: value
      for name, value in dataclasses.asdict(self).items()
      if value is not None
    }

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
