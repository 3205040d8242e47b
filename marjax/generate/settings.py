"""How to generate: steps, guidance, temperature, and how the head draws.

`Settings` are complete. What a person wants otherwise is a mapping of changes,
nested as the settings are, or the name of a preset:

    {"guidance_scale": 2.0, "head": {"num_steps": 50}}
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

from marjax import schema
from marjax.model import ModelConfig
from marjax.protocols import HeadSettings
from marjax.schema import Range, check

PUBLISHED_AR_STEPS = 64

ARSteps = Annotated[
  int, Range(1, 1024, note=", and at most one for each token of the image")
]
"""Of a generation; its plan is made of all ways to cut them."""


@schema.config
class Settings:
  """Generation settings; the defaults are the released program's, unguided.

  Attributes:
    num_ar_steps: autoregressive steps, 1 .. number of tokens; None for 64, or
      as many as there are tokens, which a causal model takes always.
    guidance_scale: 1 for none; larger follows the label more.
    guidance_schedule: "linear" grows from about 1 to the scale as tokens are
      revealed; "constant" uses the scale at every step.
    temperature: scales the noise of the head's sampler; 0 .. 1 usually.
    num_buckets: segments of equal shape; more waste less, compile longer; None
      for as few as waste at most 3 %.
    head: how the head draws, of the head's own class, such as
      `ReverseSettings`; None for its defaults.
  """

  num_ar_steps: ARSteps | None = None
  guidance_scale: Annotated[float, Range(0, 1000)] = 1.0
  guidance_schedule: Literal["linear", "constant"] = "linear"
  temperature: Annotated[float, Range(0, 100)] = 1.0
  num_buckets: ARSteps | None = None
  head: HeadSettings | None = None

  def __repr__(self) -> str:
    fields = ", ".join(
      f"{field.name}={getattr(self, field.name)!r}"
      for field in dataclasses.fields(self)
      if getattr(self, field.name) != field.default
    )
    return f"Settings({fields})"

  def changed(
    self, changes: Mapping[str, Any], model: ModelConfig | None = None
  ) -> "Settings":
    """These settings with some fields changed, those of a head one by one.

    Args:
      changes: nested as the settings are. model: whose head's settings None
        stands for.

    Raises:
      ValueError: an unknown field, a value of another type or range, or a
        temperature where the head adds no noise.
    """
    own = self.head
    if own is None and model is not None:
      own = model.head.Settings()
    asked = changes.get("head")
    if isinstance(asked, Mapping) and own is not None:
      wanted = {**schema.to_dict(own), **asked}
      changes = {**changes, "head": wanted}
    fields = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    found = schema.from_dict(Settings, {**fields, **changes}, "settings")
    head = found.head or (model and model.head.Settings())
    # One that stood there before may stay: it changes nothing.
    is_asked = "temperature" in changes and found.temperature != 1
    check(
      not (is_asked and head) or head.has_temperature,
      f"temperature is {found.temperature:g}; expected 1, because the head, as"
      f" it is set, adds no noise that it could scale: {head!r}.",
    )
    return found

  def for_model(self, model: ModelConfig) -> "Settings":
    """These settings with nothing left open that a generation must know.

    Raises:
      ValueError: more steps than tokens; settings of another kind of head.
    """
    self.check_fits(model)
    backbone = model.backbone
    most = backbone.num_tokens
    steps = most if backbone.is_sequential else min(PUBLISHED_AR_STEPS, most)
    return dataclasses.replace(
      self,
      num_ar_steps=self.num_ar_steps or steps,
      head=self.head or model.head.Settings(),
    )

  def check_fits(self, model: ModelConfig, where: str = "") -> None:
    """Refuses settings of other models, with a ValueError that says where."""
    num_tokens, head = model.backbone.num_tokens, model.head
    prefix = f"{where}." if where else ""
    steps = self.num_ar_steps
    check(
      steps in (None, num_tokens) or not model.backbone.is_sequential,
      f"{prefix}num_ar_steps is {steps}; expected {num_tokens} or none: the"
      f" model's {model.backbone.kind} backbone draws one token a step.",
    )
    check(
      steps is None or steps <= num_tokens,
      f"{prefix}num_ar_steps is {steps}; expected 1 to {num_tokens}, because"
      f" each step reveals at least one of the image's {num_tokens} tokens.",
    )
    check(
      self.head is None or isinstance(self.head, head.Settings),
      f"{prefix}head is {type(self.head).__name__}; expected"
      f" {head.Settings.__name__}, which the model's {head.kind} head takes.",
    )


class Changes(TypedDict, total=False):
  """What differs from settings, field by field; see `Settings`."""

  num_ar_steps: int | None
  guidance_scale: float
  guidance_schedule: Literal["linear", "constant"]
  temperature: float
  num_buckets: int | None
  head: HeadSettings | Mapping[str, Any] | None
