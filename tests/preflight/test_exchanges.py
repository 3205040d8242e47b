"""What training and generation exchange between chips, as XLA compiles them.

Only parameters and their gradients may travel. Each device has 14 images in two
strata of 7, and no size of the model is a multiple of 7, so that an array with
a batch in it gives itself away.
"""

import dataclasses
import functools
import math
import re

import jax
import pytest
import small

from marjax.experiment import MeshConfig
from marjax.generate.settings import Settings
from marjax.head.reverse import ReverseSettings
from marjax.parallel.mesh import mesh_for
from marjax.preflight import costs, hlo, parts, programs
from marjax.preflight.topology import devices_of
from marjax.train.step import make_train_program

# Each compiles a whole step; what they count by is tested in test_hlo.py.
pytestmark = pytest.mark.slow

BATCH, DEPTH = 7, 3
PLATFORMS = pytest.mark.parametrize("topology", ["here", "v5e:2x4"])


def experiment(preset):
  """Blocks without dropout, which exchanges nothing and compiles for long."""
  # Gradients of bfloat16 products are summed over devices in bfloat16.
  dtype = "float32" if preset == "dp" else "bfloat16"
  replace, model = dataclasses.replace, small.MODEL
  backbone = replace(
    model.backbone,
    encoder_depth=DEPTH,
    decoder_depth=DEPTH,
    attention_dropout=0.0,
    projection_dropout=0.0,
  )
  return replace(
    small.EXPERIMENT,
    model=replace(model, backbone=backbone).in_dtype(dtype),
    training=replace(small.EXPERIMENT.training, batch_size=16 * BATCH),
    sampling=Settings(
      num_ar_steps=2, num_buckets=1, head=ReverseSettings(num_steps=2)
    ),
    mesh=MeshConfig(preset),
  )


@functools.cache
def step(topology, preset):
  """Abstract parameters, exchanges and FLOPs of the step on eight devices."""
  devices = devices_of(topology)
  if topology == "here":
    devices = devices[:8]
  asked = experiment(preset)
  program = make_train_program(asked, mesh_for(asked, devices), 64)
  lowered = program.step.lower(program.abstract_state, program.abstract_batch)
  # Exchanges are settled before this level matters, and it saves half the time.
  quick = {"xla_backend_optimization_level": 0} if topology == "here" else None
  compiled = lowered.compile(quick)
  module = hlo.parse(compiled.as_text())
  params = program.abstract_state.params
  flops = sum(number for _, number in costs.products(module))
  return params, costs.collectives(module), flops


def largest_part(params):
  """Numbers in the largest parameter, or layer's part of a stacked one."""
  return max(
    leaf.size // (DEPTH if "'layers'" in jax.tree_util.keystr(path) else 1)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  )


def skip_without_compiler(topology):
  if topology != "here":
    pytest.importorskip("libtpu", reason="libtpu brings the TPU compiler")


@pytest.mark.parametrize(
  ("topology", "preset"),
  [("here", "fsdp"), ("v5e:2x4", "fsdp"), ("v5e:2x4", "dp")],
)
def test_no_exchange_has_a_batch_in_it(topology, preset):
  skip_without_compiler(topology)
  _, found, _ = step(topology, preset)
  assert [c for c in found if any(n and n % BATCH == 0 for n in c.shape)] == []


def test_a_whole_state_on_each_device_reduces_each_gradient_once():
  skip_without_compiler("v5e:2x4")
  params, found, _ = step("v5e:2x4", "dp")
  reduced = sum(c.times * c.num_bytes for c in found)
  whole = sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)
  )
  assert {c.kind for c in found} == {"all-reduce"}
  # The little more is the loss, and the number of tokens it is the mean of.
  assert whole <= reduced <= whole + 4096


@PLATFORMS
def test_a_split_state_is_gathered_layer_by_layer(topology):
  skip_without_compiler(topology)
  params, found, _ = step(topology, "fsdp")
  stacks = [params["backbone"][name] for name in ("encoder", "decoder")]
  block = stacks[0]["layers"]["block"]
  kernels = {
    "qkv": block["attention"]["qkv"],
    "projection": block["attention"]["projection"],
    "fc1": block["fc1"],
    "fc2": block["fc2"],
  }
  gathers = [c for c in found if c.kind == "all-gather"]
  for name, layer in kernels.items():
    is_mine = re.compile(rf"/block/(.*/)?{name}(\.weights)?/").search
    mine = [c for c in gathers if is_mine(c.op_name)]
    size = layer["kernel"].size // DEPTH
    # Forward and backward, of the encoder and of the decoder; q, k and v each
    # by itself.
    assert sum(math.prod(c.shape) for c in mine) >= 4 * size
    assert all(math.prod(c.shape) <= size for c in mine)
    assert {c.times for c in mine} == {DEPTH}


@PLATFORMS
def test_a_split_state_is_never_there_whole(topology):
  skip_without_compiler(topology)
  params, found, _ = step(topology, "fsdp")
  gathers = [c for c in found if c.kind == "all-gather"]
  assert max(math.prod(c.shape) for c in gathers) <= largest_part(params)
  # Once forward, once for what is recomputed, once backward.
  gathered = sum(c.times * math.prod(c.shape) for c in gathers)
  everything = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert gathered <= 3 * everything


def test_arithmetic_does_not_depend_on_who_compiles_or_what_is_split():
  """XLA makes loops of its own there, which exchange while they multiply."""
  skip_without_compiler("v5e:2x4")
  wanted = [("here", "fsdp"), ("v5e:2x4", "fsdp"), ("v5e:2x4", "dp")]
  assert len({step(*each)[2] for each in wanted}) == 1


def test_generation_gathers_layer_by_layer_and_exchanges_no_images():
  skip_without_compiler("v5e:2x4")
  asked, devices = experiment("fsdp"), devices_of("v5e:2x4")
  made = programs.generate_programs(asked, mesh_for(asked, devices), 8 * BATCH)
  modules = {
    program.name: hlo.parse(program.compiled.as_text()) for program in made
  }
  found = {name: costs.collectives(module) for name, module in modules.items()}
  assert set(found) == {"begin", "steps 0 to 1", "finish"}
  assert found["begin"] == found["finish"] == []
  gathers = found["steps 0 to 1"]
  kinds = {c.kind for c in gathers}
  assert kinds <= {"all-gather", "all-reduce", "collective-permute"}
  assert gathers
  assert [
    c for c in gathers if any(n and n % BATCH == 0 for n in c.shape)
  ] == []
  params, _, _ = step("v5e:2x4", "fsdp")
  assert max(math.prod(c.shape) for c in gathers) <= largest_part(params)
  block = [c for c in gathers if "/block/" in c.op_name]
  # Each step goes through every layer; the last of the decoder is apart.
  assert {c.times for c in block} == {2, 2 * (DEPTH - 1), 2 * DEPTH}
  work = parts.by_part([modules["steps 0 to 1"]], {}, None)
  assert tuple(work) == ("encoder", "decoder", "head", "rest")
  sent = {part: of_part.sent_bytes for part, of_part in work.items()}
  assert sum(sent.values()) == sum(c.sent_bytes for c in gathers)
  assert min(sent["encoder"], sent["decoder"], sent["head"]) > 0
