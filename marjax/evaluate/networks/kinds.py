"""The networks there are, by name: a new one is a file and one line here.

A network that comes in several sizes has here its default, and `load` gives the
size that a file of weights is of.
"""

import os

from jaxtyping import PyTree

from marjax import outputs, schema
from marjax.evaluate.networks import weights
from marjax.evaluate.networks.clip import Clip
from marjax.evaluate.networks.dinov2 import DinoV2
from marjax.evaluate.networks.inception import Inception
from marjax.evaluate.networks.label import Label
from marjax.evaluate.networks.mobilenet import MobileNet
from marjax.evaluate.networks.pixels import Pixels
from marjax.evaluate.networks.protocol import Network
from marjax.evaluate.networks.squeezenet import SqueezeNet
from marjax.schema import check

NETWORKS: dict[str, Network] = {
  "inception": Inception(),
  "mobilenet": MobileNet(),
  "squeezenet": SqueezeNet(),
  "label": Label(),
  "dinov2": DinoV2(),
  "clip": Clip(),
  "pixels": Pixels(),
}


def network(name: str) -> Network:
  """The network of that name; ValueError if there is none."""
  check(
    name in NETWORKS,
    f"{name!r} is no network; expected one of {', '.join(NETWORKS)}: choose one"
    " of them.",
  )
  return NETWORKS[name]


def load(name: str, file: str | os.PathLike) -> tuple[Network, PyTree, str]:
  """A network of the size of a file's weights, these, and the file's SHA-256.

  Args:
    file: "" for NAME.safetensors in the current folder; so for a network
      without weights, which has no SHA-256 either.

  Raises:
    ValueError: no such network, or not its weights. FileNotFoundError: there is
      no such file; says how it is made.
  """
  chosen = network(name)
  if not chosen.shapes():
    check(
      not file,
      f"{file} cannot be weights of {name}, which has none; expected no file:"
      " leave --weights out.",
    )
    return chosen, {}, ""
  file = file or f"{name}.safetensors"
  if outputs.local(file).exists():
    noted = weights.note(file)
    if noted["name"] == name and schema.is_config(type(chosen)):
      chosen = schema.from_dict(type(chosen), noted["settings"], str(file))
  return chosen, *weights.read(file, chosen)
