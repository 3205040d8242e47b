"""A new run from another model: what is carried over, what is new, what not."""

import dataclasses
import json
import logging
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.shared import tiny

import marjax
from marjax.arrays import named, shapes_of
from marjax.latents.codebook import CodebookConfig
from marjax.model import param_shapes
from marjax.parallel.mesh import host_mesh
from marjax.release import directory
from marjax.release import workdir as workdirs
from marjax.release.card import Card
from marjax.train import initial, loop, samples
from marjax.train.state import TrainState

TABLE = "backbone/class_embedding/table"
POSITIONS = "backbone/encoder_positions/table"
LARGER = ("data.image_size=8", "codec.image_size=8")
LARGER += ("model.backbone.num_tokens=16",)


def classes(count):
  fields = ("data.num_classes", "model.backbone.condition.num_classes")
  return [f"{field}={count}" for field in fields]


def begun(*changes):
  """A new run's experiment; it starts from "source"."""
  return tiny("training.init_from=source", *changes)


def weights(experiment, seed):
  random = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32),
    nn.unbox(param_shapes(experiment.model)),
  )


def source(*changes, names=()):
  """The model that runs of these tests start from."""
  card = workdirs.card_of(tiny(*changes), 5, names)
  return initial.Source("source", card, weights(tiny(*changes), 0), "0" * 64)


def plan(run, of, names=()):
  shapes = shapes_of(of.params), shapes_of(weights(run, 1))
  return initial.plan_for(run, of, shapes, names)


def start(run, of, names=()):
  """Parameters anew, and the state that starts from the source."""
  params = weights(run, 1)
  state = TrainState(jnp.int32(0), params, params, ())
  return params, initial.start(run, of, state, names)


@pytest.mark.parametrize(
  ("theirs", "ours", "rows"),
  [
    (("cat, kitty", "dog"), ("fox", "kitty", "dog"), (-1, 0, 1)),
    (("n02123045 tabby", "dog"), ("n02123045", "Dog"), (0, 1)),
    # Names that are numbers are left out of a card.
    (("0", "1"), ("1", "2", "0"), (1, -1, 0)),
    ((), (), None),
    ((), ("fox", "kitty", "dog"), (-1, -1, -1)),
    # A name of two classes is nobody's.
    (("cat, dog", "dog"), ("dog", "cat"), (-1, 0)),
  ],
)
def test_classes_are_found_by_what_they_are_called(theirs, ours, rows):
  run = begun(*classes(len(ours) or 2))
  found = plan(run, source(names=theirs), ours)
  is_whole = rows is None or rows == (0, 1)
  assert (TABLE in found.carried) == is_whole
  assert found.rows.get(TABLE) == (None if is_whole else rows)


def test_rows_of_classes_go_where_their_names_are():
  run, of = begun(*classes(3)), source(names=("cat", "dog"))
  fresh, state = start(run, of, ("dog", "fox"))
  there, here = named(of.params), named(state.params)
  np.testing.assert_array_equal(here[TABLE][0], there[TABLE][1])
  np.testing.assert_array_equal(here[TABLE][1:], named(fresh)[TABLE][1:])
  for name in here.keys() - {TABLE}:
    np.testing.assert_array_equal(here[name], there[name])
  averages = named(state.ema_params)
  for name, leaf in here.items():
    np.testing.assert_array_equal(leaf, averages[name])
    assert (
      leaf.unsafe_buffer_pointer() != averages[name].unsafe_buffer_pointer()
    ), "the step gives both away"


def test_positions_are_interpolated_and_slots_carried_over(caplog):
  caplog.set_level(logging.INFO)
  run, of = begun(*LARGER), source()
  _, state = start(run, of)
  here, there = named(state.params)[POSITIONS], named(of.params)[POSITIONS]
  assert here.shape == (17, 8)
  np.testing.assert_array_equal(here[0], there[0])
  # Bicubic weights are symmetric: the mean of a grid stays.
  np.testing.assert_allclose(
    here[1:].mean(axis=0), there[1:].mean(axis=0), atol=1e-5
  )
  assert "interpolated: backbone/decoder_positions/table (2 x 2 to 4 x 4)" in (
    caplog.text
  )
  assert f"carried over {len(named(of.params)) - 3} arrays" in caplog.text


def test_a_ramp_stays_a_ramp():
  rows, columns = np.mgrid[:8, :8]
  table = np.stack([rows, 10 * columns], axis=-1).reshape(64, 2)
  table = jnp.concatenate([jnp.array([[-5.0, -6.0]]), table])
  larger = np.asarray(initial.interpolated(table, 8, 16))
  assert larger.shape == (257, 2)
  np.testing.assert_array_equal(larger[0], table[0])
  grid = larger[1:].reshape(16, 16, 2)[4:-4, 4:-4]
  centres = (np.arange(16) + 0.5) / 2 - 0.5
  rows, columns = np.meshgrid(centres[4:-4], centres[4:-4], indexing="ij")
  np.testing.assert_allclose(grid[..., 0], rows, atol=1e-4)
  np.testing.assert_allclose(grid[..., 1], 10 * columns, atol=1e-3)


def test_what_is_named_starts_anew():
  run = begun(
    'training.init_fresh=["*_positions/table", "head/*"]', "model.head.width=6"
  )
  fresh, state = start(run, source())
  for name, leaf in named(state.params).items():
    is_new = name.startswith("head/") or "_positions/" in name
    assert np.array_equal(leaf, named(fresh)[name]) == is_new, name


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    (
      ["model.backbone.width=16"],
      r"source: backbone/\S+ is of shape \(1, 8\); expected shape \(1, 16\)",
    ),
    (["model.backbone.encoder_depth=2"], r"is of shape .*; expected shape"),
    (["model.backbone.num_buffer=2"], r"positions/table is of shape"),
    (
      ['training.init_fresh=["haed/*"]'],
      r"init_fresh has 'haed/\*', which matches no such parameter; expected",
    ),
  ],
)
def test_what_does_not_fit_is_one_sentence(changes, reason):
  with pytest.raises(ValueError, match=reason) as caught:
    plan(begun(*changes), source())
  assert str(caught.value).endswith(".")


def test_what_starts_anew_is_not_frozen():
  frozen = 'training.factors=[("backbone/*", 0.0)]'
  reason = f"{TABLE} starts anew, and is frozen; expected"
  with pytest.raises(ValueError, match=reason):
    start(begun(*classes(3), frozen), source())
  start(begun(frozen), source())


def test_an_autoencoder_alone_is_one_sentence(tmp_path):
  codec = CodebookConfig(4, channels=1, patch=2, num_codes=4)
  params = codec.init_params(jax.random.key(0))
  directory.save(tmp_path / "codes", Card("codes", codec), params)
  with pytest.raises(ValueError, match="is an autoencoder alone; expected a m"):
    initial.load(str(tmp_path / "codes"), host_mesh())


@pytest.mark.slow
def test_a_run_is_fine_tuned_and_goes_on(tmp_path, caplog, monkeypatch):
  drawn_with = []

  def generate(self, labels):
    drawn_with.append(shapes_of(self.params))
    return np.zeros((len(labels), 4, 4, 1), np.uint8)

  monkeypatch.setattr(samples.Pipeline, "generate", generate)
  caplog.set_level(logging.INFO)
  first, second = tmp_path / "first", tmp_path / "second"
  loop.train(tiny("training.num_steps=1"), first)
  run = tiny(
    f"training.init_from={first}",
    "training.lora.rank=2",
    "training.num_steps=2",
    "training.sample_every=2",
  )
  with pytest.raises(
    ValueError, match=r"have the digest .*; expected the same"
  ):
    initial.load(str(first), host_mesh(), "0" * 64)
  state = loop.train(run, second)
  noted = json.loads((second / "config.json").read_text())["training"]
  assert len(noted["init_digest"]) == 64
  # What generates is plain, and has the averaged updates in it.
  loaded = marjax.load(second).params
  there = jax.device_get(named(workdirs.load(first, host_mesh())[1]))
  assert shapes_of(loaded) == shapes_of(there) == drawn_with[0]
  factors = jax.device_get(state.ema_params["lora"]["head"]["net"])["condition"]
  kernel = there["head/net/condition/kernel"]
  np.testing.assert_allclose(
    named(loaded)["head/net/condition/kernel"],
    kernel + 16 / 2 * factors["down"] @ factors["up"],
    rtol=1e-5,
    atol=1e-6,
  )
  # The source is not read again, and its digest stays.
  shutil.rmtree(first)
  longer = dataclasses.replace(run.training, num_steps=3)
  caplog.clear()
  again = loop.train(dataclasses.replace(run, training=longer), second)
  assert int(again.step) == 3
  assert "resumed from step 2" in caplog.text
  assert json.loads((second / "config.json").read_text())["training"] == {
    **noted,
    "num_steps": 3,
  }
