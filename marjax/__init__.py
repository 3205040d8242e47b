"""marjax: autoregressive image generation with continuous tokens (MAR).

Use it:        load, Pipeline, Settings, regions, fit
Build with it: DiffusionHead, DiffusionHeadConfig, MarModel, ModelConfig,
               MaskedConfig, CausalConfig, GuidedConfig, ReverseSettings,
               Experiment

    pipe = marjax.load("mar-large")
    images = pipe.generate(labels=["golden retriever", 360], seed=0)

Importing it pulls in neither TensorFlow, nor torch, nor orbax; a public name is
imported when it is first asked for, so that a command begins at once.
"""

import importlib
import typing

from marjax.version import __version__

if typing.TYPE_CHECKING:
  from marjax.backbone.causal import CausalConfig
  from marjax.backbone.guided import GuidedConfig
  from marjax.backbone.masked import MaskedConfig
  from marjax.experiment import Experiment
  from marjax.generate.settings import Settings
  from marjax.head.diffusion import DiffusionHead, DiffusionHeadConfig
  from marjax.head.reverse import ReverseSettings
  from marjax.model import MarModel, ModelConfig
  from marjax.pipeline import Pipeline, load
  from marjax.requests.showing import grid, save, to_pil
  from marjax.tokens import regions

_HOMES = {
  "backbone.causal": ("CausalConfig",),
  "backbone.guided": ("GuidedConfig",),
  "backbone.masked": ("MaskedConfig",),
  "experiment": ("Experiment",),
  "head.diffusion": ("DiffusionHead", "DiffusionHeadConfig"),
  "head.reverse": ("ReverseSettings",),
  "model": ("MarModel", "ModelConfig"),
  "pipeline": ("Pipeline", "load"),
  "generate.settings": ("Settings",),
  "requests.showing": ("grid", "save", "to_pil"),
}

__all__ = [
  "CausalConfig",
  "DiffusionHead",
  "DiffusionHeadConfig",
  "Experiment",
  "GuidedConfig",
  "MarModel",
  "MaskedConfig",
  "ModelConfig",
  "Pipeline",
  "ReverseSettings",
  "Settings",
  "__version__",
  "fit",
  "grid",
  "load",
  "regions",
  "save",
  "to_pil",
]


def fit(experiment: "Experiment", workdir: str) -> None:
  """Trains an experiment in a work directory, resuming what is there."""
  from marjax.train.loop import train

  train(experiment, workdir)


def __getattr__(name: str):
  if name == "regions":
    return importlib.import_module("marjax.tokens.regions")
  for module, names in _HOMES.items():
    if name in names:
      value = getattr(importlib.import_module(f"marjax.{module}"), name)
      globals()[name] = value
      return value
  raise AttributeError(f"module 'marjax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
