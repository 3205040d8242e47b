"""A model, a network and real images, all tiny, for tests of whole runs."""

import numpy as np
import small
from evaluate.networks import Projection, noise_images

from marjax.evaluate.networks import kinds, weights
from marjax.generate.settings import Settings
from marjax.head.reverse import ReverseSettings
from marjax.release import directory
from marjax.release.card import Card

SAMPLING = Settings(
  num_ar_steps=2, num_buckets=1, head=ReverseSettings(num_steps=2, start=900)
)

NETWORK = Projection(channels=1)


def register(set_item) -> None:
  """Adds the network to those that there are; `set_item` is a patch's."""
  set_item(kinds.NETWORKS, NETWORK.name, NETWORK)


def make(folder, data=None):
  """FOLDER/model, weights.safetensors and real.npz; `data` of the model."""
  experiment = small.EXPERIMENT
  card = Card(
    name="small",
    codec=experiment.codec,
    model=experiment.model,
    sampling=SAMPLING,
    licence="CC0",
    data=data,
  )
  directory.save(folder / "model", card, small.params(), {})
  weights.write(
    folder / "weights.safetensors", NETWORK, NETWORK.params(), {"from": "here"}
  )
  np.savez(folder / "real.npz", arr_0=noise_images(5, 120, channels=1))
  return folder
