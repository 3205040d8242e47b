"""Training and generation on several meshes of eight fake devices."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import small
from jax.sharding import PartitionSpec as P

from marjax.arrays import named
from marjax.experiment import MeshConfig
from marjax.model import param_shapes
from marjax.parallel.mesh import make_mesh, mesh_for
from marjax.parallel.rules import batch_sharding, shardings
from marjax.pipeline import Pipeline
from marjax.train.step import make_train_program

MESHES = {
  "1 device": MeshConfig(),
  "dp": MeshConfig("dp"),
  "fsdp": MeshConfig("fsdp"),
  "fsdp+tensor": MeshConfig("fsdp+tensor", tensor=2),
  "2 data, 2 fsdp, 2 tensor": MeshConfig(data=2, fsdp=2, tensor=2),
}

MUON = dataclasses.replace(small.EXPERIMENT.training, optimizer="muon")

KINDS = {
  "masked": small.EXPERIMENT,
  "masked, muon": dataclasses.replace(small.EXPERIMENT, training=MUON),
  "raster": small.of_kind("raster"),
  "random, codes": small.of_kind("random", is_coded=True),
  "guided, codes": small.of_kind("guided", is_coded=True),
}


def mesh_of(name):
  experiment = dataclasses.replace(small.EXPERIMENT, mesh=MESHES[name])
  devices = jax.devices()[: 1 if name == "1 device" else 8]
  return mesh_for(experiment, devices)


def codebook_of(experiment):
  codes = np.asarray(jax.random.normal(jax.random.key(0), (12, 4)))
  return {"codes": codes} if experiment.codec.has_params() else {}


@functools.cache
def two_steps(name, kind="masked"):
  mesh = mesh_of(name)
  experiment = KINDS[kind]
  codes = codebook_of(experiment)
  program = make_train_program(experiment, mesh, 64, codes)
  state = program.init()
  batch = jax.device_put(small.images(16), batch_sharding(program.mesh))
  metrics = []
  for _ in range(2):
    state, values = program.step(state, batch)
    metrics.append({k: float(v) for k, v in values.items()})
  return metrics, jax.tree.map(np.asarray, state.params), state


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    slow("dp", "masked"),
    slow("fsdp", "masked"),
    slow("fsdp+tensor", "masked"),
    ("2 data, 2 fsdp, 2 tensor", "masked"),
    ("2 data, 2 fsdp, 2 tensor", "masked, muon"),
    slow("2 data, 2 fsdp, 2 tensor", "raster"),
    slow("2 data, 2 fsdp, 2 tensor", "guided, codes"),
  ],
)
def test_training_is_the_same_on_every_mesh(name, kind):
  expected, expected_params, _ = two_steps("1 device", kind)
  metrics, params, _ = two_steps(name, kind)
  for ours, theirs in zip(metrics, expected, strict=True):
    for key in theirs:
      np.testing.assert_allclose(ours[key], theirs[key], rtol=2e-5)
  # Adam divides a gradient by its own size, so rounding shows at most in the
  # step itself: 1e-3 of learning rate, twice.
  jax.tree_util.tree_map_with_path(_check_near, params, expected_params)


def _check_near(path, ours, theirs):
  name = jax.tree_util.keystr(path[-2:], simple=True, separator="/")
  # What all keys share changes no softmax: its gradient is rounding alone.
  if name == "to_keys/bias":
    return
  if name == "qkv/bias":
    ours, theirs = (np.delete(array, 1, axis=-3) for array in (ours, theirs))
  np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_state_lives_where_the_table_says():
  state = two_steps("2 data, 2 fsdp, 2 tensor")[2]
  block = state.params["backbone"]["encoder"]["layers"]["block"]
  specs = {
    "qkv": block["attention"]["qkv"]["kernel"],
    "projection": block["attention"]["projection"]["kernel"],
    "fc1": block["fc1"]["kernel"],
    "fc2": block["fc2"]["kernel"],
    "class table": state.params["backbone"]["class_embedding"]["table"],
    "head block": state.params["head"]["net"]["blocks_0"]["linear_in"][
      "kernel"
    ],
  }
  assert {name: leaf.sharding.spec for name, leaf in specs.items()} == {
    "qkv": P(None, "fsdp", None, "tensor", None),
    "projection": P(None, "tensor", None, "fsdp"),
    "fc1": P(None, "fsdp", "tensor"),
    "fc2": P(None, "tensor", "fsdp"),
    "class table": P(None, "fsdp"),
    "head block": P("fsdp", "tensor"),
  }
  ema = jax.tree.leaves(state.ema_params)
  for leaf, average in zip(jax.tree.leaves(state.params), ema, strict=True):
    assert leaf.sharding == average.sharding


@pytest.mark.parametrize("kind", ["masked", "masked, muon"])
def test_moments_live_with_their_parameter(kind):
  state = two_steps("2 data, 2 fsdp, 2 tensor", kind)[2]
  params = named(state.params)
  counts = dict.fromkeys(params, 0)
  for name, leaf in named(state.opt_state).items():
    own = [n for n in params if name.endswith(f"/{n}")]
    for parameter in own:
      assert leaf.sharding == params[parameter].sharding, name
      counts[parameter] += 1
  kernel = "backbone/encoder/layers/block/fc1/kernel"
  assert counts.pop(kernel) == (1 if "muon" in kind else 2)
  assert min(counts.values()) >= 1


@functools.cache
def ten_images(kind, mesh_name):
  """Images and latents of that kind of model."""
  experiment, mesh = KINDS[kind], mesh_of(mesh_name)
  placed = shardings(param_shapes(experiment.model), mesh)
  params = jax.device_put(small.params(model=experiment.model), placed)
  codes = codebook_of(experiment)
  pipe = Pipeline.of_experiment(experiment, params, mesh, 0, codes)
  latents = pipe.latents(list(range(10)), seed=4, num_buckets=1)
  return pipe.decode(latents), latents


@pytest.mark.parametrize("name", ["fsdp", slow("2 data, 2 fsdp, 2 tensor")])
@pytest.mark.parametrize(
  "kind", ["masked", slow("raster"), slow("random, codes"), "guided, codes"]
)
def test_generation_is_the_same_on_every_mesh(kind, name):
  images, latents = ten_images(kind, name)
  expected, codes = ten_images(kind, "1 device")
  # uint8 images: 1e-4 of the range moves a pixel by at most one level.
  assert np.abs(images.astype(int) - expected).max() <= 1
  if latents.dtype == np.int32:
    np.testing.assert_array_equal(latents, codes)
    assert len(np.unique(latents)) > 3


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ({"data": 3}, "does not cover the 8 devices"),
    ({"fsdp": 3}, "does not cover the 8 devices"),
    ({"data": 2, "fsdp": 2, "tensor": 3}, "does not cover the 8 devices"),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    make_mesh(**sizes, devices=jax.devices()[:8])


def test_a_size_that_does_not_divide_is_refused():
  mesh = make_mesh(fsdp=8, devices=jax.devices()[:8])
  odd = dataclasses.replace(
    small.MODEL,
    backbone=dataclasses.replace(small.MODEL.backbone, width=36),
  )
  experiment = dataclasses.replace(small.EXPERIMENT, model=odd)
  with pytest.raises(ValueError, match="cannot be split over the 8 devices"):
    make_train_program(experiment, mesh, num_examples=64)
