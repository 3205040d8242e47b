"""All that is kept of a set of images that one network has seen.

1. A plan says what the scores need: moments always; only where asked for those
   of a map, sums by class, hits of labels, or what is seen of every image.
2. Its sums of a batch are a pure function, so that it can end the program that
   generates the images: nothing else leaves the devices.
3. The host adds them in float64. Every image has an index from 0 to N - 1 and
   counts exactly once, whatever the batches, the devices and the padding; on a
   mesh every host gets the same sums.
4. What was added is a few arrays: a run that was killed restores them, adds the
   rest in the same order, and has the same bits.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import (
  Array,
  Bool,
  Float32,
  Int,
  Int32,
  Int64,
  PyTree,
  UInt8,
)

from marjax import arrays
from marjax.evaluate.networks.protocol import Network
from marjax.evaluate.scores import class_score, moments
from marjax.evaluate.scores.moments import Moments
from marjax.evaluate.scores.options import DEFAULTS, Options
from marjax.parallel import hosts
from marjax.parallel.rules import batch_sharding, replicated
from marjax.schema import check

ROWS = {"features": "pooled", "places": "spatial", "logits": "logits"}
"""What is kept of every image, by the name of what the network sees of it."""

NEEDS = ("moments", "spatial", "classes", "hits", *ROWS)

MOST = 16
"""Plans whose programs are kept."""


class Gathered(NamedTuple):
  """What was gathered of a set of images.

  Attributes:
    network: that saw them.
    moments: of its features.
    spatial: moments of its map, or None.
    classes: sums of the class score, or None.
    hits: of each class how many images were seen as what their label says, and
      how many there are, or None.
    features, places, logits: of every image in the order of their indices, or
      None; places are those of the map.
  """

  network: Network
  moments: Moments
  spatial: Moments | None = None
  classes: class_score.Sums | None = None
  hits: Int64[np.ndarray, "classes 2"] | None = None
  features: Float32[np.ndarray, "images features"] | None = None
  places: Float32[np.ndarray, "images places"] | None = None
  logits: Float32[np.ndarray, "images classes"] | None = None

  @property
  def count(self) -> int:
    """Images."""
    return self.moments.count


class BatchSums(NamedTuple):
  """What one batch adds; arrays of the device, whole on every host.

  Attributes:
    index: of each image among all.
    is_real: whether it is one, not padding.
    first_bad: smallest index whose features or logits are not finite, or -1.
    moments, spatial, classes, hits: see `Gathered`.
    rows: of each image, by name; those of `Gathered`.
  """

  index: Int32[Array, " batch"]
  is_real: Bool[Array, " batch"]
  first_bad: Int32[Array, ""]
  moments: moments.Sums
  spatial: moments.Sums | None
  classes: class_score.Sums | None
  hits: Int32[Array, "classes 2"] | None
  rows: dict[str, Float32[Array, "batch numbers"]]


@dataclass(frozen=True)
class Plan:
  """What to gather of how many images with which network.

  Attributes:
    needs: some of NEEDS.
    num_images: N; indices are 0 to N - 1.
    options: splits and order of the class score are used.
  """

  network: Network
  needs: frozenset[str]
  num_images: int
  options: Options = DEFAULTS

  def __post_init__(self):
    check(
      self.num_images > 0,
      f"num_images is {self.num_images}; expected 1 or more.",
    )
    unknown = sorted(self.needs - set(NEEDS))
    check(
      not unknown,
      f"{', '.join(unknown)} cannot be gathered; expected some of"
      f" {', '.join(NEEDS)}.",
    )
    for need, size, what in (
      ("spatial", self.network.num_places, "map, which sFID needs"),
      ("classes", self.network.num_logits, "classes, which a score needs"),
      ("hits", self.network.num_logits, "classes, which a score needs"),
      ("places", self.network.num_places, "map, which sFID needs"),
      ("logits", self.network.num_logits, "classes, which a score needs"),
    ):
      check(
        need not in self.needs or size > 0,
        f"the network {self.network.name} has no {what}; expected a network"
        " that has, or other scores.",
      )
    if "classes" in self.needs:  # refuses too few images for the splits
      self.splits()

  def splits(self) -> Int32[np.ndarray, " images"]:
    """The split of the class score that each image belongs to."""
    options = self.options
    return class_score.splits_of(
      self.num_images, options.num_splits, options.order
    )

  def sums(
    self,
    params: PyTree,
    images: UInt8[Array, "batch rows columns channels"],
    index: Int32[Array, " batch"],
    is_real: Bool[Array, " batch"],
    labels: Int32[Array, " batch"],
  ) -> BatchSums:
    """Sums of a batch; for use inside compiled programs.

    Args:
      index: of each image among all.
      is_real: false for rows that only fill up the batch.
      labels: classes that were asked for; used for hits only.
    """
    seen = self.network(params, images)
    is_fine = _are_finite(seen)
    last = jnp.iinfo(jnp.int32).max
    first_bad = jnp.where(is_real & ~is_fine, index, last).min()
    wanted = functools.partial(_where_needed, self.needs)
    return BatchSums(
      index,
      is_real,
      jnp.where(first_bad == last, -1, first_bad),
      moments.batch_sums(seen.pooled, is_real),
      wanted("spatial", lambda: moments.batch_sums(seen.spatial, is_real)),
      wanted("classes", lambda: self._classes(seen.logits, index, is_real)),
      wanted("hits", lambda: _hits(seen.logits, labels, is_real)),
      {
        name: getattr(seen, part)
        for name, part in ROWS.items()
        if name in self.needs
      },
    )

  def _classes(self, logits, index, is_real) -> class_score.Sums:
    """Sums of the class score, each image in its own split."""
    # Padding may have any index; its split counts nothing.
    splits = jnp.asarray(self.splits())[index.clip(0, self.num_images - 1)]
    return class_score.batch_sums(
      logits, splits, is_real, self.options.num_splits
    )


def _where_needed(needs, name, make):
  return make() if name in needs else None


def _are_finite(seen) -> Bool[Array, " batch"]:
  """Whether all that the network says of an image is finite."""
  parts = [jnp.isfinite(part).all(1) for part in seen if part is not None]
  return functools.reduce(jnp.logical_and, parts)


def _hits(logits, labels, is_real) -> Int32[Array, "classes 2"]:
  """Right answers and images, by class."""
  is_of = (labels[:, None] == jnp.arange(logits.shape[1])) & is_real[:, None]
  is_right = is_of & (logits.argmax(1) == labels)[:, None]
  return jnp.stack([is_right.sum(0), is_of.sum(0)], axis=1).astype(jnp.int32)


class Gatherer:
  """Shows images to a network, batch by batch, and adds what is seen.

  Attributes:
    plan: what is gathered.
    params: of the network, on the devices of the mesh.
  """

  def __init__(self, plan: Plan, params: PyTree, mesh: Mesh | None = None):
    """
    Args:
      mesh: over which batches are split; None for one device.
    """
    self.plan, self._mesh, self.params = plan, mesh, params
    if mesh is not None:
      whole = replicated(mesh)
      self.params = jax.tree.map(lambda leaf: hosts.spread(leaf, whole), params)
    self._program, self._state = _program(plan, mesh), _empty(plan)

  def sums(
    self,
    images: UInt8[Array | np.ndarray, "batch rows columns channels"],
    index: Int[Array | np.ndarray, " batch"],
    is_real: Bool[Array | np.ndarray, " batch"],
    labels: Int[Array | np.ndarray, " batch"] | None = None,
  ) -> BatchSums:
    """Sums of a batch, perhaps still being computed; see `Plan.sums`.

    Args:
      images: all of the batch on every host, or an array of the mesh's.
      labels: None where there are none.
    """
    if labels is None:
      labels = np.full(len(images), -1, np.int32)
    batch = (images, index, is_real, labels)
    return self._program(self.params, *map(self.placed, batch))

  def placed(self, array: Array | np.ndarray) -> Array | np.ndarray:
    """An array of the host's on the mesh, its rows split."""
    if isinstance(array, jax.Array):
      return array
    if np.issubdtype(array.dtype, np.integer) and array.dtype != np.uint8:
      array = array.astype(np.int32)
    if self._mesh is None:
      return array
    return hosts.spread(array, batch_sharding(self._mesh))

  def add(self, sums: BatchSums) -> None:
    """Adds a batch's sums; the order of calls decides the last bits.

    Raises:
      ValueError: a number is not finite, an index is none, or was there before.
    """
    first_bad = int(sums.first_bad)
    check(
      first_bad < 0,
      f"what the network {self.plan.network.name} sees of image {first_bad} is"
      " not finite; expected finite features: look at its weights and at that"
      " image.",
    )
    state, index = self._state, np.asarray(sums.index)[np.asarray(sums.is_real)]
    self._mark(index)
    state["moments"] = moments.add(state["moments"], sums.moments)
    if sums.spatial is not None:
      state["spatial"] = moments.add(state["spatial"], sums.spatial)
    if sums.classes is not None:
      state["classes"] = class_score.add(state["classes"], sums.classes)
    for name, rows in sums.rows.items():
      state[name][index] = np.asarray(rows)[np.asarray(sums.is_real)]
    if sums.hits is not None:
      state["hits"] = state["hits"] + np.asarray(sums.hits, np.int64)

  def _mark(self, index: np.ndarray) -> None:
    """Notes that images were seen, each once."""
    is_seen, num_images = self._state["is_seen"], self.plan.num_images
    outside = index[(index < 0) | (index >= num_images)]
    if len(outside):
      raise ValueError(
        f"there is an image {outside[0]} among {num_images}; expected indices"
        f" from 0 to {num_images - 1}."
      )
    numbers, times = np.unique(index, return_counts=True)
    again = numbers[is_seen[numbers] | (times > 1)]
    check(
      not len(again),
      f"image {again.min(initial=num_images)} was seen twice; expected every"
      " image once.",
    )
    is_seen[index] = True

  def missing(self) -> Int64[np.ndarray, " missing"]:
    """Indices of the images that have not been added."""
    return np.flatnonzero(~self._state["is_seen"])

  def gathered(self) -> Gathered:
    """What was gathered, once every image was added.

    Raises:
      ValueError: some are missing.
    """
    missing = self.missing()
    if len(missing):
      raise ValueError(
        f"{len(missing)} of {self.plan.num_images} images were not seen, the"
        f" first {missing[0]}; expected all of them."
      )
    parts = {name: self._state.get(name) for name in NEEDS}
    for name in ROWS.keys() & self._state.keys():
      # Scores keep what they know of arrays that cannot change.
      parts[name] = parts[name].view()
      parts[name].flags.writeable = False
    return Gathered(self.plan.network, **parts)

  def state(self) -> dict[str, np.ndarray]:
    """What was added up to now, as arrays; write them before adding more."""
    return {
      name: np.asarray(array)
      for name, array in arrays.named(self._state).items()
    }

  def restore(self, state: Mapping[str, np.ndarray]) -> None:
    """Goes on from a state, to the bit.

    Raises:
      ValueError: it is that of another plan.
    """
    empty, structure = jax.tree.flatten(self._state)
    names = arrays.named(self._state)
    expected = [(np.shape(leaf), np.asarray(leaf).dtype) for leaf in empty]
    stored = [np.asarray(state[name]) for name in names if name in state]
    check(
      set(state) == set(names)
      and [(leaf.shape, leaf.dtype) for leaf in stored] == expected,
      "what was gathered before holds other arrays than this run gathers;"
      " expected the same network, number of images and scores: start again in"
      " another folder.",
    )
    copied = [leaf.copy() if leaf.ndim else int(leaf) for leaf in stored]
    self._state = jax.tree.unflatten(structure, copied)


@functools.lru_cache(maxsize=MOST)
def _program(plan: Plan, mesh: Mesh | None) -> Callable:
  """A plan's sums of a batch; compiled once for all sets with that plan."""
  placed = None if mesh is None else replicated(mesh)
  return jax.jit(plan.sums, out_shardings=placed)


def _empty(plan: Plan) -> dict:
  """What there is before any image."""
  network, needs = plan.network, plan.needs
  state = {
    "is_seen": np.zeros(plan.num_images, bool),
    "moments": moments.empty(network.num_features),
  }
  if "spatial" in needs:
    state["spatial"] = moments.empty(network.num_places)
  if "classes" in needs:
    state["classes"] = class_score.empty(
      plan.options.num_splits, network.num_logits
    )
  for name, size in (
    ("features", network.num_features),
    ("places", network.num_places),
    ("logits", network.num_logits),
  ):
    if name in needs:
      state[name] = np.zeros((plan.num_images, size), np.float32)
  if "hits" in needs:
    state["hits"] = np.zeros((network.num_logits, 2), np.int64)
  return state
