"""The table of logical axes, and the presets, on one slice and on two."""

import dataclasses
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.sharding import PartitionSpec as P

from marjax import model
from marjax.cli import configs
from marjax.experiment import MeshConfig
from marjax.layers.placed import constrained
from marjax.model import param_shapes
from marjax.parallel import rules
from marjax.parallel.mesh import make_mesh, mesh_for, sizes_of
from marjax.train.step import make_train_program

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent


def eight(**sizes):
  return make_mesh(**sizes, devices=jax.devices()[:8])


def test_where_every_array_of_training_lives():
  experiment = configs.load(str(ROOT / "configs/mar_b.py"))
  program = make_train_program(
    experiment, eight(fsdp=4, tensor=2), num_examples=10**6
  )
  _compare((program.abstract_state, program.abstract_batch), "specs.txt")


def test_where_parameters_of_other_backbones_live():
  mesh, cells = eight(fsdp=4, tensor=2), ("ar_random_ce", "guided")
  shapes = {
    cell: param_shapes(configs.load(f"{ROOT}/configs/table1.py:{cell}").model)
    for cell in cells
  }
  placed = {
    cell: rules.placed(nn.unbox(boxed), rules.shardings(boxed, mesh))
    for cell, boxed in shapes.items()
  }
  _compare(placed, "backbones.txt")


def _compare(arrays, name: str):
  snapshot = HERE / name
  paths = jax.tree_util.tree_leaves_with_path(arrays)
  found = "".join(
    f"{jax.tree_util.keystr(path, simple=True, separator='.')}"
    f" {list(leaf.shape)} {_shown(leaf.sharding.spec)}\n"
    for path, leaf in paths
  )
  if not snapshot.exists():
    snapshot.write_text(found)
    pytest.fail(f"{snapshot} was missing and is written: look at it")
  assert found == snapshot.read_text(), (
    f"arrays moved; if that is meant, delete {snapshot} and run this again"
  )


@pytest.mark.parametrize("name", ["mar_b", "mar_l", "mar_h"])
def test_fsdp_leaves_each_device_its_share_of_the_state(name):
  experiment = configs.load(
    str(ROOT / f"configs/{name}.py"), ["config.mesh.fsdp=8"]
  )
  mesh = mesh_for(experiment, jax.devices()[:8])
  state = make_train_program(experiment, mesh, num_examples=10**6)
  leaves = jax.tree.leaves(state.abstract_state)
  whole = sum(leaf.size for leaf in leaves)
  share = sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves
  )
  # Biases of the axes that only tensor splits are whole everywhere.
  assert whole / 8 <= share <= 1.006 * whole / 8


def _shown(spec):
  return ", ".join(str(axis) for axis in spec) or "whole"


@pytest.mark.parametrize(
  ("config", "num_slices", "sizes"),
  [
    (MeshConfig("dp"), 1, (-1, 1, 1)),
    (MeshConfig("fsdp"), 1, (1, -1, 1)),
    (MeshConfig("fsdp"), 2, (2, -1, 1)),
    (MeshConfig("fsdp+tensor", tensor=4), 2, (2, -1, 4)),
    (MeshConfig(data=2, fsdp=4), 1, (2, 4, 1)),
  ],
)
def test_presets(config, num_slices, sizes):
  assert sizes_of(config, num_slices) == sizes


@pytest.mark.parametrize(
  "fields",
  [
    {"preset": "fsdp", "fsdp": 4},
    {"preset": "dp", "tensor": 2},
    {"preset": "fsdp+tensor"},
  ],
)
def test_a_preset_sets_its_sizes_itself(fields):
  with pytest.raises(ValueError, match="sets data and fsdp itself"):
    MeshConfig(**fields)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"data": 0}, "sizes of 1 or more, and at most one"),
    ({"fsdp": -1}, "sizes of 1 or more, and at most one"),
    ({"tensor": -2}, "tensor is -2; expected -1 to"),
  ],
)
def test_sizes_that_mean_nothing(fields, message):
  with pytest.raises(ValueError, match=message):
    MeshConfig(**fields)


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_a_batch_that_the_mesh_cannot_share(num_microbatches):
  training = dataclasses.replace(
    small.EXPERIMENT.training,
    batch_size=4 * num_microbatches,
    num_microbatches=num_microbatches,
  )
  experiment = dataclasses.replace(small.EXPERIMENT, training=training)
  message = f"expected a multiple of {8 * num_microbatches}, the devices"
  with pytest.raises(ValueError, match=message):
    mesh_for(experiment, jax.devices()[:8])


def test_only_the_data_axis_crosses_slices():
  pytest.importorskip("libtpu")
  from jax.experimental import topologies

  chips = topologies.get_topology_desc(
    platform="tpu", topology_name="v5e:2x2", num_slices=2
  ).devices
  experiment = dataclasses.replace(small.EXPERIMENT, mesh=MeshConfig("fsdp"))
  mesh = mesh_for(experiment, chips)
  assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
  for slice_index, row in enumerate(mesh.devices):
    assert {chip.slice_index for chip in row.flat} == {slice_index}
  with pytest.raises(ValueError, match="shared out among 2 slices"):
    make_mesh(data=1, fsdp=8, devices=chips)


def test_two_axes_on_one_mesh_axis_are_refused():
  with pytest.raises(ValueError, match="two of which go to one mesh axis"):
    rules.spec_of(("heads", "mlp"), (8, 8), eight(tensor=2), "parameter x")
  with pytest.raises(ValueError, match="two of which go to one mesh axis"):
    rules.spec_of(("batch", "embed"), (8, 8), eight(fsdp=2), "the batch")


def test_a_name_that_is_not_in_the_table_is_refused():
  with pytest.raises(ValueError, match="'colour'; expected one of batch, seq"):
    rules.spec_of((None, "colour"), (8, 8), eight(), "parameter x")


def test_a_collision_of_what_flows_is_refused():
  with (
    nn.logical_axis_rules(rules.RULES),
    pytest.raises(ValueError, match="two of which go to one mesh axis"),
  ):
    constrained(np.zeros((8, 8)), ("batch", "embed"))


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_a_batch_is_put_together_from_its_rows(sizes):
  mesh = eight(**sizes)
  rows = rules.local_rows(mesh, 16)
  assert rows.tolist() == list(range(16))
  batch = {"id": np.arange(16), "image": np.random.rand(16, 2).astype("f4")}
  placed = rules.global_batch(batch, mesh)
  for name, array in placed.items():
    np.testing.assert_array_equal(array, batch[name])
    assert array.sharding.spec == P(("data", "fsdp"))


def test_a_models_own_init_is_plain_and_its_axes_are_apart():
  config = small.MODEL
  batch, shape = config.backbone.batch_multiple, config.backbone.token_shape
  keys = jax.random.split(jax.random.key(0), batch)
  draws = model.draw(config, keys, config.backbone.condition.nothing(batch))
  tokens = jnp.zeros((batch, config.backbone.num_tokens, *shape))

  def init(method):
    call = getattr(config.build(), method)
    return jax.eval_shape(lambda: call(keys[0], tokens, draws)["params"])

  boxed = param_shapes(config)
  assert init("boxed_init") == boxed
  assert init("init") == nn.unbox(boxed)
  assert init("init") != boxed
