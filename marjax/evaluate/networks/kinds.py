"""The networks there are, by name: a new one is a file and one line here."""

from marjax.evaluate.networks.clip import Clip
from marjax.evaluate.networks.dinov2 import DinoV2
from marjax.evaluate.networks.inception import Inception
from marjax.evaluate.networks.mobilenet import MobileNet
from marjax.evaluate.networks.protocol import Network
from marjax.evaluate.networks.squeezenet import SqueezeNet
from marjax.schema import check

NETWORKS: dict[str, Network] = {
  "inception": Inception(),
  "mobilenet": MobileNet(),
  "squeezenet": SqueezeNet(),
  "dinov2": DinoV2(),
  "clip": Clip(),
}


def network(name: str) -> Network:
  """The network of that name; ValueError if there is none."""
  check(
    name in NETWORKS,
    f"{name!r} is no network; expected one of {', '.join(NETWORKS)}: choose one"
    " of them.",
  )
  return NETWORKS[name]
