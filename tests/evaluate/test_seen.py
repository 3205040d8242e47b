"""What eyes see together is what each sees alone; what they keep."""

import platform

import jax
import numpy as np
from evaluate.networks import Projection, noise_images

from marjax.evaluate import seen, sets
from marjax.evaluate.scores.options import DEFAULTS
from marjax.evaluate.seen import Eye, Taken
from marjax.parallel.mesh import make_mesh

COUNT = 90


class Counted:
  """A set that notes which of its images are read."""

  def __init__(self, images):
    self._images, self.read = images, []
    for name in ("description", "crop", "shape", "num_classes"):
      setattr(self, name, getattr(images, name))

  def __len__(self):
    return len(self._images)

  def rows(self, indices):
    self.read += indices.tolist()
    return self._images.rows(indices)


def test_eyes_that_look_together_see_the_same_bits_of_images_read_once(
  tmp_path,
):
  np.savez(tmp_path / "set.npz", noise_images(0, COUNT), np.arange(COUNT) % 10)
  images = Counted(sets.open_set(tmp_path / "set.npz"))
  taken = Taken(batch_size=16)
  chosen = taken.choose(images, 70)
  asked = [
    (
      Eye(network, network.params(seed), "", DEFAULTS, make_mesh()),
      frozenset({"moments", *needs}),
    )
    for seed, network, needs in (
      (0, Projection(), ("hits", "features")),
      (1, Projection(name="other", num_features=20), ("spatial", "logits")),
    )
  ]
  together = seen.look_together(chosen, asked, taken)
  assert images.read == chosen.indices.tolist()
  for (eye, needs), ours in zip(asked, together, strict=True):
    alone = seen.look(chosen, eye, needs, taken).gathered
    assert ours.network == eye.network
    jax.tree.map(np.testing.assert_array_equal, ours[1:], alone[1:])


def test_the_programs_of_eyes_are_kept(monkeypatch, tmp_path):
  monkeypatch.setenv("MARJAX_PROGRAMS", str(tmp_path))
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update("jax_compilation_cache_dir", None)
    seen.load_eye("pixels", "")
    folder = jax.config.jax_compilation_cache_dir
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
  assert folder == str(tmp_path / platform.node())
