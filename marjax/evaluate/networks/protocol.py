"""What a feature network must be: images → features, logits.

1. A network is a frozen dataclass without arrays: its parameters are a pytree
   beside it, read from a file of the user's or fit on a data set, or empty.
2. It is called inside compiled programs, on a part of a batch as on a whole.
3. A new one is a file of its own and one line in `marjax.evaluate.networks.
   kinds`.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float32, PyTree, UInt8


class Features(NamedTuple):
  """What a network sees of images.

  Attributes:
    pooled: whose moments a Fréchet distance compares.
    spatial: flattened rows, columns, channels of a map, where sFID is defined.
    logits: of the network's own classes; without the classifier's bias where
      the Inception Score is defined so.
  """

  pooled: Float32[Array, "batch features"]
  spatial: Float32[Array, "batch places"] | None = None
  logits: Float32[Array, "batch classes"] | None = None


@runtime_checkable
class Network(Protocol):
  """Images → features.

  Attributes:
    name: as flags and files of statistics say it: inception, mobilenet, ...
    distance: what the Fréchet distance of its features is called. Only that of
      the Inception network of 2015 is "fid"; others are "fd_" and the name.
    class_score: what the Inception Score's formula is called with its logits;
      "" where there are none.
    num_features, num_places, num_logits: of `Features`; 0 where there are none.
    source: what its weights are made of, for the message that they are missing:
      "the file X of Y".
    command: that makes them, up to the path of the file to make.
  """

  name: str
  distance: str
  class_score: str
  num_features: int
  num_places: int
  num_logits: int
  source: str
  command: str

  def shapes(self) -> PyTree:
    """Shapes and dtypes of the parameters, which a file must have."""
    ...

  def __call__(
    self, params: PyTree, images: UInt8[Array, "batch rows columns channels"]
  ) -> Features:
    """What it sees, in float32 with full products."""
    ...


class Named:
  """What follows from a network's name, unless it says otherwise."""

  num_places = 0
  num_logits = 0

  @property
  def distance(self) -> str:
    """See `Network`."""
    return f"fd_{self.name}"

  @property
  def class_score(self) -> str:
    """See `Network`."""
    return f"class_score_{self.name}" if self.num_logits else ""

  @property
  def command(self) -> str:
    """See `Network`."""
    return f"marjax convert {self.name} FILE --out"
