"""marjax: autoregressive image generation with continuous tokens (MAR).

Use it:        load, Pipeline, Settings, train
Build with it: DiffusionHead, DiffusionHeadConfig, MarModel, ModelConfig,
               MaskedConfig, ReverseSettings, Experiment

    pipe = marjax.load("out/digits")
    images = pipe.generate(labels=[0, 1, 2], seed=0)

Importing it pulls in neither TensorFlow, nor torch, nor orbax.
"""

from marjax.backbone.masked import MaskedConfig
from marjax.experiment import Experiment
from marjax.head.diffusion import DiffusionHead, DiffusionHeadConfig
from marjax.head.reverse import ReverseSettings
from marjax.model import MarModel, ModelConfig
from marjax.pipeline import Pipeline, load
from marjax.settings import Settings
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
  "load",
  "train",
]


def train(experiment: Experiment, workdir: str) -> None:
  """Trains an experiment in a work directory, resuming what is there."""
  from marjax.train.loop import train as run

  run(experiment, workdir)
