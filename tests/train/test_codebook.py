"""Codebooks are fitted, released, and refused where they do not fit."""

import copy
import dataclasses

import numpy as np
import pytest
import small
from sentences import refuses

import marjax
from marjax.cli import configs, main
from marjax.experiment import DataConfig
from marjax.latents.codebook import CodebookConfig
from marjax.parallel.mesh import host_mesh
from marjax.release import directory, loading
from marjax.release.card import Card
from marjax.train import autoencoder, codebook
from marjax.train.codebook import Choices
from marjax.train.gradients import draw_for

CODEC = CodebookConfig(8, channels=1, patch=2, num_codes=12, std=0.5)
DATA = DataConfig(
  "synthetic", image_size=8, channels=1, num_classes=10, num_examples=40
)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
  folder = tmp_path_factory.mktemp("fitted") / "codebook"
  return folder, codebook.fit(CODEC, DATA, folder)


def weights_of(codec, name, workdir):
  return autoencoder.of_run(codec, str(name), None, workdir)


def test_what_was_fitted_is_said(released):
  folder, report = released
  assert (report.num_images, report.num_patches) == (40, 640)
  assert report.is_settled
  assert report.errors[-1] < report.errors[0]
  assert report.usage.sum() == 640
  assert "12 codes to 640 patches of 40 images" in str(report)
  assert str(folder) in str(report)
  card = directory.read_manifest(folder).card
  assert (card.codec, card.model, card.data) == (CODEC, None, DATA)


def test_it_encodes_and_decodes(released):
  pipe = marjax.load(released[0], host_mesh())
  images = np.uint8(
    np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
  )
  ids = pipe.encode(images)
  assert (ids.shape, ids.dtype) == ((3, 4, 4), np.int32)
  assert pipe.tokenise(images).shape == (3, 16)
  again = pipe.reconstruct(images)
  np.testing.assert_array_equal(pipe.encode(again), ids)
  with pytest.raises(ValueError, match="codes go from 0 to 12; expected"):
    pipe.decode(np.arange(16).reshape(1, 4, 4) % 13)


def test_a_seed_and_some_images_decide(released, tmp_path):
  def codes(name, **choices):
    codebook.fit(CODEC, DATA, tmp_path / name, Choices(**choices))
    return loading.load(tmp_path / name, host_mesh()).codec_params["codes"]

  all_ = loading.load(released[0], host_mesh()).codec_params["codes"]
  np.testing.assert_array_equal(codes("a"), all_)
  some = codes("b", num_images=20, seed=3)
  assert not np.array_equal(some, all_)
  np.testing.assert_array_equal(codes("c", num_images=20, seed=3), some)
  flipped = dataclasses.replace(DATA, flip=True)
  report = codebook.fit(CODEC, flipped, tmp_path / "d")
  assert report.num_images == 80
  report = codebook.fit(CODEC, DATA, tmp_path / "e", Choices(num_iterations=1))
  assert not report.is_settled
  assert len(report.errors) == 2


def test_tokens_of_a_batch_are_the_ids(released):
  params = loading.load(released[0], host_mesh()).codec_params
  experiment = copy.copy(small.EXPERIMENT)
  object.__setattr__(experiment, "codec", CODEC)
  batch = small.images(6)
  tokens = draw_for(experiment, batch, 3, params)[0]
  ids = CODEC.encode(params, batch["image"])
  np.testing.assert_array_equal(tokens, ids.reshape(6, 16))
  assert tokens.dtype == np.int32


def test_a_run_takes_the_release_that_it_names(released, tmp_path):
  folder = released[0]
  ours = weights_of(CODEC, folder, tmp_path)
  params = loading.load(folder, host_mesh()).codec_params
  np.testing.assert_array_equal(ours.params["codes"], params["codes"])
  larger = dataclasses.replace(CODEC, image_size=16)
  assert weights_of(larger, folder, tmp_path).digest


@pytest.mark.parametrize(
  "change",
  [
    {"patch": 4},
    {"num_codes": 13},
    {"mean": 0.1},
    {"std": 1.0},
    {"channels": 3},
  ],
)
def test_a_codebook_of_other_patches_is_refused(released, tmp_path, change):
  other = dataclasses.replace(CODEC, **change)
  with pytest.raises(ValueError, match="expected the autoencoder of the model"):
    weights_of(other, released[0], tmp_path)


def test_what_cannot_be_trained_with_is_one_sentence(tmp_path):
  with pytest.raises(ValueError, match=r"data\.autoencoder names none; expect"):
    weights_of(CODEC, "", tmp_path)
  with pytest.raises(FileNotFoundError, match="does not exist; expected a rel"):
    weights_of(CODEC, tmp_path / "no", tmp_path)
  refuses(
    lambda: weights_of(small.EXPERIMENT.codec, "book", tmp_path),
    "data.autoencoder is 'book', and a codec of kind 'pixels' has no weights",
  )
  small.save_release(tmp_path / "model")
  with pytest.raises(ValueError, match="is a model; expected the autoencoder"):
    weights_of(CODEC, tmp_path / "model", tmp_path)


def test_what_cannot_be_fitted_is_one_sentence(tmp_path):
  out = tmp_path / "out"
  with pytest.raises(ValueError, match="kind is 'kl'; expected 'codebook'"):
    codebook.fit(small.CODEC, DATA, out)
  with pytest.raises(ValueError, match="data has 8 pixels"):
    codebook.fit(dataclasses.replace(CODEC, image_size=16), DATA, out)
  many = dataclasses.replace(CODEC, num_codes=700)
  with pytest.raises(ValueError, match="different vectors; expected at least"):
    codebook.fit(many, DATA, out)
  assert not out.exists()
  out.mkdir()
  with pytest.raises(FileExistsError, match="already exists; expected a new"):
    codebook.fit(CODEC, DATA, out)


def test_the_command(tmp_path, monkeypatch, capsys):
  run = dataclasses.make_dataclass("Run", ["name", "codec", "data"])
  asked = []

  def load(*args):
    asked.append(args)
    return run("tiny", CODEC, DATA)

  monkeypatch.setattr(configs, "load", load)
  flags = ["--config", "a.py", "--config.seed=1", "--out", str(tmp_path / "a")]
  assert main.main(["fit-codebook", *flags, "--num_images", "20"]) == 0
  assert asked == [("a.py", ["config.seed=1"])]
  assert "12 codes to 320 patches of 20 images" in capsys.readouterr().out
  assert directory.read_manifest(tmp_path / "a").card.name == "tiny-codebook"
  assert main.main(["fit-codebook", *flags]) == 2
  assert "already exists" in capsys.readouterr().err
  assert main.main(["fit-codebook", *flags, "--num_images", "0"]) == 2
  assert "num_images is 0; expected 1 to" in capsys.readouterr().err


def test_a_codebook_is_no_autoencoder_of_a_cache(released):
  from marjax.data import latent_cache

  card = directory.read_manifest(released[0]).card
  with pytest.raises(ValueError, match="kind 'codebook', whose latents are co"):
    latent_cache.check_autoencoder(card, "codes")


def test_a_copy_of_another_codebook_stops_a_run(released, tmp_path):
  ours = weights_of(CODEC, released[0], tmp_path)
  autoencoder.keep_copy(ours, tmp_path)
  autoencoder.keep_copy(ours, tmp_path)
  # The copy stands in for an original that is gone.
  gone = weights_of(CODEC, tmp_path / "gone", tmp_path)
  assert gone.digest == ours.digest
  other = tmp_path / "other"
  codes = np.ones((12, 4), np.float32)
  directory.save(other, Card(name="other", codec=CODEC), {"codes": codes})
  theirs = weights_of(CODEC, other, tmp_path)
  with pytest.raises(ValueError, match="expected the same: move that folder"):
    autoencoder.keep_copy(theirs, tmp_path)
  with pytest.raises(ValueError, match="this run's are of"):
    autoencoder.check_same(ours.digest, theirs.digest, tmp_path)
