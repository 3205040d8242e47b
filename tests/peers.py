"""Packages whose networks and scores ours are compared with.

PyPI's torchvision is built for CUDA. Beside a torch for CPUs its compiled
operators are missing, and it stops at the first that it wants to describe,
though no network needs one: their names are then declared before, without code.
"""

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType

import pytest

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def peer(name: str) -> ModuleType:
  """A module of torchvision or of a package built on it.

  The test is skipped where it is not installed.
  """
  if importlib.util.find_spec(name.partition(".")[0]) is None:
    pytest.skip(f"{name} is not installed")
  with warnings.catch_warnings():
    # It says that it will not read pictures.
    warnings.simplefilter("ignore")
    _import_torchvision()
    return importlib.import_module(name)


def _import_torchvision() -> None:
  pytest.importorskip("torch")
  try:
    importlib.import_module("torchvision")
  except RuntimeError as error:
    if "torchvision::" not in str(error):
      raise
    for half in [n for n in sys.modules if n.startswith("torchvision")]:
      del sys.modules[half]
    from torch import library

    for operator in _OPERATORS:
      library.define(f"torchvision::{operator}", _SIGNATURE)
    importlib.import_module("torchvision")
