"""The label network: what is trained, what is written, what is seen with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.cli.main import main
from marjax.data.batches import load_all
from marjax.evaluate.networks import kinds, weights
from marjax.evaluate.networks.label import Label
from marjax.evaluate.networks.protocol import Network
from marjax.experiment import DataConfig
from marjax.train import classifier
from marjax.train import classifier_step as steps

DATA = DataConfig(
  "synthetic", image_size=12, num_classes=4, num_examples=320, num_threads=0
)
CHOICES = classifier.Choices(num_epochs=10, width=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The report of a classifier trained on made-up images."""
  path = tmp_path_factory.mktemp("classifier") / "label.safetensors"
  return classifier.fit(DATA, path, CHOICES)


def pixels(seed, count, network):
  rng = np.random.default_rng(seed)
  size = network.image_size
  shape = (count, size, size, network.channels)
  return rng.integers(0, 256, shape).astype(np.uint8)


def batch_normed(network):
  """Random parameters of training in which no scale or bias is plain."""
  params = steps.initial(network, jax.random.key(0))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: leaf + rng.uniform(0.1, 0.4, leaf.shape).astype(np.float32),
    params,
  )


def test_a_data_set_is_learned_and_its_accuracy_is_in_the_file(trained):
  assert trained.accuracy > 0.9  # of four classes
  noted = weights.note(trained.path)
  assert noted["name"] == "label"
  assert noted["origin"]["test_accuracy"] == trained.accuracy
  assert noted["origin"]["test_images"] == trained.num_test == 320
  assert noted["origin"]["choices"]["num_epochs"] == 10
  assert f"{trained.accuracy:.4f} of 320 test images" in str(trained)


def test_the_file_says_the_size_and_sees_what_was_measured(trained):
  network, params, digest = kinds.load("label", trained.path)
  assert network == Label(12, 3, 4, 4) == trained.network
  assert isinstance(network, Network)
  assert len(digest) == 64
  test = load_all(DATA, "test")
  seen = jax.jit(network)(params, test.images)
  assert seen.pooled.shape == (320, network.num_features)
  right = np.asarray(seen.logits).argmax(1) == test.labels
  assert right.mean() == pytest.approx(trained.accuracy, abs=1e-9)


def test_training_again_gives_the_same_file(trained, tmp_path):
  again = classifier.fit(DATA, tmp_path / "again.safetensors", CHOICES)
  assert again.path.read_bytes() == trained.path.read_bytes()


def test_folding_batch_norm_changes_nothing():
  network = Label(9, 2, 5, 3)
  images = pixels(0, 16, network)
  params = batch_normed(network)
  scaled = jnp.asarray(images, jnp.float32) / 127.5 - 1
  logits, moments = jax.jit(steps.forward)(params, scaled)
  plain = jax.jit(network)(steps.folded(params, moments), images)
  np.testing.assert_allclose(plain.logits, logits, rtol=1e-4, atol=1e-4)
  assert np.std(logits) > 0.01
  shapes = jax.tree.map(lambda leaf: leaf.shape, network.shapes())
  folded = steps.folded(params, moments)
  assert jax.tree.map(jnp.shape, folded) == shapes


def test_an_image_is_seen_alone_as_in_a_batch():
  network = Label(8, 1, 3, 2)
  images = pixels(1, 6, network)
  params = batch_normed(network)
  scaled = jnp.asarray(images, jnp.float32) / 127.5 - 1
  moments = jax.jit(steps.statistics)(params, scaled)
  plain = steps.folded(params, moments)
  see = jax.jit(network)
  whole, alone = see(plain, images), see(plain, images[2:3])
  np.testing.assert_allclose(whole.pooled[2:3], alone.pooled, atol=1e-5)
  np.testing.assert_allclose(whole.logits[2:3], alone.logits, atol=1e-5)


def test_images_are_shifted_and_have_a_grey_square():
  size, reach, side = 16, 2, 4
  values = 1 + np.arange(size**2, dtype=np.float32)  # none is grey, 0
  image = values.reshape(size, size, 1)
  images = np.broadcast_to(image, (64, size, size, 1))
  changed = np.asarray(steps.augmented(jax.random.key(3), jnp.asarray(images)))[
    ..., 0
  ]
  padded = np.pad(image[..., 0], reach, mode="reflect")
  shifts = set()
  for one in changed:
    is_grey = one == 0
    rows, columns = (np.flatnonzero(is_grey.any(axis)) for axis in (1, 0))
    assert is_grey.sum() == len(rows) * len(columns)
    assert 1 <= len(rows) <= side
    assert 1 <= len(columns) <= side
    fits = [
      (y, x)
      for y in range(2 * reach + 1)
      for x in range(2 * reach + 1)
      if ((padded[y : y + size, x : x + size] == one) | is_grey).all()
    ]
    assert len(fits) == 1
    shifts |= set(fits)
  assert len(shifts) > 12  # of 25
  assert (changed == 0).sum(axis=(1, 2)).max() == side**2


def test_what_cannot_be_learned_is_one_sentence(tmp_path, trained):
  out = tmp_path / "label.safetensors"

  def refused(message, data=DATA, choices=CHOICES, error=ValueError):
    with pytest.raises(error, match=message):
      classifier.fit(data, out, choices)
    assert not out.exists()

  change = dataclasses.replace
  refused("expected images, for", change(DATA, source="latents"))
  refused("num_classes is 1; expected two", change(DATA, num_classes=1))
  refused("image_size is 4; expected 8", change(DATA, image_size=4))
  folder = change(DATA, source="folder", data_dir=str(tmp_path / "absent"))
  refused("absent", folder, error=FileNotFoundError)
  with pytest.raises(FileExistsError):
    classifier.fit(DATA, trained.path, CHOICES)


def test_images_of_another_size_are_one_sentence(trained):
  network, params, _ = kinds.load("label", trained.path)
  with pytest.raises(ValueError, match=r"trained on \(12, 12, 3\); expected"):
    network(params, jnp.zeros((1, 8, 8, 3), jnp.uint8))


def test_missing_weights_name_the_verb(tmp_path):
  with pytest.raises(FileNotFoundError, match="run marjax fit-classifier --c"):
    kinds.load("label", tmp_path / "label.safetensors")


@pytest.mark.slow
def test_digits_are_learned_from_the_command_line(tmp_path, capsys):
  out = tmp_path / "label.safetensors"
  flags = ["--config", "configs/digits.py", "--width", "16", "--out", str(out)]
  flags += ["--num_epochs", "10"]
  assert main(["fit-classifier", *flags]) == 0
  assert "of 450 test images" in capsys.readouterr().out
  # A third of the default passes; all of them give 0.99.
  assert weights.note(out)["origin"]["test_accuracy"] >= 0.93
