"""marjax: autoregressive image generation with continuous tokens (MAR).

Use it:        load, Pipeline, Settings, regions, fit
Build with it: DiffusionHead, DiffusionHeadConfig, MarModel, ModelConfig,
               MaskedConfig, ReverseSettings, Experiment

    pipe = marjax.load("mar-large")
    images = pipe.generate(labels=["golden retriever", 360], seed=0)

Importing it pulls in neither TensorFlow, nor torch, nor orbax.
"""

from marjax.backbone.masked import MaskedConfig
from marjax.experiment import Experiment
from marjax.head.diffusion import DiffusionHead, DiffusionHeadConfig
from marjax.head.reverse import ReverseSettings
from marjax.model import MarModel, ModelConfig
from marjax.pipeline import Pipeline, load
from marjax.settings import Settings
from marjax.tokens import regions
from marjax.version import __version__

__all__ = [
  "DiffusionHead",
  "DiffusionHeadConfig",
  "Experiment",
  "MarModel",
  "MaskedConfig",
  "ModelConfig",
  "Pipeline",
  "ReverseSettings",
  "Settings",
  "__version__",
  "fit",
  "load",
  "regions",
]


def fit(experiment: Experiment, workdir: str) -> None:
  """Trains an experiment in a work directory, resuming what is there."""
  from marjax.train.loop import train

  train(experiment, workdir)
