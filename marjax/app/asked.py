"""What the controls of the page say, as a link and as code in Python.

`Asked` has one field for each control. A link has it as query parameters, a
generation as the arguments of `pipe.generate` and `pipe.edit`, and the code
beside a picture shows that call.
"""

import ast
import dataclasses
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from marjax import schema
from marjax.backbone.classes import NO_CLASS, name_of
from marjax.schema import Range

if TYPE_CHECKING:
  from marjax.pipeline import Pipeline

MOST_IMAGES = 16
"""Of one click."""


@schema.config
class Asked:
  """What the controls of the page say.

  Attributes:
    label: a class, -1 for none. num_images: of that class.
    seed: the same seed gives the same pictures.
    preset: name of one, "" for the checkpoint's own settings.
    guidance_scale, num_ar_steps: as in `Settings`.
    num_head_steps: `head.num_steps` there.
  """

  label: Annotated[int, Range(NO_CLASS, 2**24)]
  num_images: Annotated[int, Range(1, MOST_IMAGES)]
  seed: Annotated[int, Range(0, 2**32 - 1)]
  preset: str
  guidance_scale: float
  num_ar_steps: int
  num_head_steps: int

  @classmethod
  def of_values(cls, *values: Any) -> "Asked":
    """Of the values of all controls, in the order of the fields.

    Raises:
      ValueError: one is of another type or out of range.
    """
    names = (field.name for field in dataclasses.fields(cls))
    given = dict(zip(names, values, strict=True))
    return schema.from_dict(cls, given, where="page")

  @classmethod
  def at_start(cls, pipe: "Pipeline") -> "Asked":
    """One picture of the first class, by the checkpoint's own settings."""
    label = 0 if pipe.card.num_classes else NO_CLASS
    return cls(label, 1, 0, "", 1.0, 1, 1).with_preset(pipe, "")

  @classmethod
  def of_query(cls, pipe: "Pipeline", query: Mapping[str, str]) -> "Asked":
    """What a link says; the rest is as its preset, or the checkpoint, says.

    Raises:
      ValueError: a name or value that no link of this page has.
    """
    start = cls.at_start(pipe).with_preset(pipe, query.get("preset", ""))
    given = {
      name: text if name == "preset" else _literal(text)
      for name, text in query.items()
    }
    if isinstance(given.get("label"), str):  # a class by its name
      given["label"] = int(pipe.labels([given["label"]])[0])
    return schema.from_dict(cls, schema.to_dict(start) | given, "link")

  def with_preset(self, pipe: "Pipeline", preset: str) -> "Asked":
    """The same, with the settings of a preset."""
    own = pipe.settings(preset or None)
    return dataclasses.replace(
      self,
      preset=preset,
      guidance_scale=own.guidance_scale,
      num_ar_steps=own.num_ar_steps,
      num_head_steps=own.head.num_steps,
    )

  def arguments(self, pipe: "Pipeline") -> dict[str, Any]:
    """What `pipe.generate` and `pipe.edit` take by name, but the labels."""
    own = pipe.settings(self.preset or None)
    named: dict[str, Any] = {"seed": self.seed, "num_images": self.num_images}
    if self.preset:
      named["settings"] = self.preset
    for name in ("guidance_scale", "num_ar_steps"):
      if getattr(self, name) != getattr(own, name):
        named[name] = getattr(self, name)
    if self.num_head_steps != own.head.num_steps:
      named["head"] = {"num_steps": self.num_head_steps}
    return named

  def link(self, host: str) -> str:
    """The address of the page with these settings."""
    return f"http://{host}/?{urllib.parse.urlencode(schema.to_dict(self))}"

  def code(self, pipe: "Pipeline", name: str, *, is_edit: bool = False) -> str:
    """Python that gives the same pictures.

    Args:
      pipe: the model. name: what `marjax.load` takes.
      is_edit: of image.png and mask.png, not of nothing.
    """
    called = name_of(self.label, pipe.card.class_names)
    lines = [f"{self.label},  # {schema.printable(called)}"]
    lines += [
      f"{key}={value!r}," for key, value in self.arguments(pipe).items()
    ]
    asked = "\n".join(f"  {line}" for line in lines)
    load = f"import marjax\n\npipe = marjax.load({name!r})"
    if not is_edit:
      call = f"images = pipe.generate(\n{asked}\n)"
      return f'{load}\n{call}\nmarjax.save(images, "images.png")\n'
    return (
      f"import numpy as np\nfrom PIL import Image\n\n{load}\n"
      'image = Image.open("image.png")\n'
      'mask = np.asarray(Image.open("mask.png")) > 0\n'
      f"edited = pipe.edit(\n  image,\n  mask,\n{asked}\n)\n"
      'marjax.save(edited.images, "edited.png")\n'
    )


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
