"""Training and generation on several meshes of eight fake devices."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import small
from jax.sharding import PartitionSpec as P

from marjax.experiment import MeshConfig
from marjax.parallel.mesh import make_mesh, mesh_for
from marjax.parallel.rules import batch_sharding
from marjax.pipeline import Pipeline
from marjax.train.step import make_train_program

MESHES = {
  "1 device": MeshConfig(),
  "dp": MeshConfig("dp"),
  "fsdp": MeshConfig("fsdp"),
  "fsdp+tensor": MeshConfig("fsdp+tensor", tensor=2),
  "2 data, 2 fsdp, 2 tensor": MeshConfig(data=2, fsdp=2, tensor=2),
}


def mesh_of(name):
  experiment = dataclasses.replace(small.EXPERIMENT, mesh=MESHES[name])
  devices = jax.devices()[: 1 if name == "1 device" else 8]
  return mesh_for(experiment, devices)


@functools.cache
def two_steps(name):
  mesh = mesh_of(name)
  program = make_train_program(small.EXPERIMENT, mesh, num_examples=64)
  state = program.init()
  batch = jax.device_put(small.images(16), batch_sharding(program.mesh))
  metrics = []
  for _ in range(2):
    state, values = program.step(state, batch)
    metrics.append({k: float(v) for k, v in values.items()})
  return metrics, jax.tree.map(np.asarray, state.params), state


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_training_is_the_same_on_every_mesh(name):
  expected, expected_params, _ = two_steps("1 device")
  metrics, params, _ = two_steps(name)
  for ours, theirs in zip(metrics, expected, strict=True):
    for key in theirs:
      np.testing.assert_allclose(ours[key], theirs[key], rtol=2e-5)
  # Adam divides a gradient by its own size, so rounding shows at most in the
  # step itself: 1e-3 of learning rate, twice.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
    params,
    expected_params,
  )


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


@pytest.mark.parametrize("name", ["fsdp", "2 data, 2 fsdp, 2 tensor"])
def test_generation_is_the_same_on_every_mesh(name):
  def images(mesh):
    pipe = Pipeline.of_experiment(small.EXPERIMENT, small.params(), mesh)
    return pipe.generate(list(range(10)), seed=4).astype(int)

  # uint8 images: 1e-4 of the range moves a pixel by at most one level.
  assert np.abs(images(mesh_of(name)) - images(mesh_of("1 device"))).max() <= 1


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
