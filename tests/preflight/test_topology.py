"""Chips to compile for: those there are, and what is said of others."""

import importlib.util
import os
import re

import jax
import pytest

from marjax.cli import main
from marjax.parallel.chips import CHIPS, chip_of
from marjax.parallel.mesh import count_slices
from marjax.preflight import gpus, topology
from marjax.preflight.topology import devices_of

needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu, which brings the TPU compiler, is not installed",
)


@needs_compiler
@pytest.mark.parametrize(
  ("name", "count", "chip"),
  [
    ("v4:2x2x4", 16, "v4"),
    ("v5e:4x4", 16, "v5e"),
    ("v5p:2x2x2", 8, "v5p"),
    ("v6e:2x4", 8, "v6e"),
  ],
)
def test_there_is_one_device_for_each_chip(name, count, chip):
  devices = devices_of(name)
  assert len(devices) == count
  assert {chip_of(device).name for device in devices} == {chip}


@needs_compiler
def test_several_slices():
  devices = devices_of("v5e:2x4", num_slices=2)
  assert (len(devices), count_slices(devices)) == (16, 2)


@pytest.mark.parametrize("kind", gpus.GPUS.values())
def test_a_gpu_is_described_by_its_data_sheet(kind):
  text, chip = gpus.description(kind), CHIPS[kind]
  found = dict(
    re.findall(r"(memory_bandwidth|device_memory_size): (\d+)", text)
  )
  assert int(found["memory_bandwidth"]) == chip.memory_gbps * 1e9
  assert int(found["device_memory_size"]) == chip.memory
  assert f'device_description_str: "{kind}"' in text
  assert text.count("{") == text.count("}") == 4


@pytest.mark.skipif(
  importlib.util.find_spec(gpus.PLUGIN) is None,
  reason="jax's CUDA plugin, which brings the GPU compiler, is not installed",
)
def test_a_product_is_compiled_for_gpus_that_are_not_there():
  devices = devices_of("h200:2")
  assert [chip_of(device).name for device in devices] == ["H200"] * 2
  mesh = jax.sharding.Mesh(devices, ("data",))
  where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  rows = jax.ShapeDtypeStruct((64, 32), "float32", sharding=where)
  with jax.set_mesh(mesh):
    assert jax.jit(lambda x: x @ x.T).lower(rows).compile().as_text()


def test_the_devices_at_hand():
  assert devices_of("here") == jax.devices()


@pytest.mark.parametrize(
  ("name", "slices"),
  [
    *[("v7:2x2", 1), ("v5e", 1), ("v5e:4", 1), ("2x2", 1), ("v5e:2x2", 0)],
    *[("h200", 1), ("h200:9", 1), ("h200:1", 2), ("a100:1", 1)],
  ],
)
def test_a_topology_of_another_form(name, slices):
  with pytest.raises(ValueError, match="one of v4, v5e, v5p, v6e, such as"):
    devices_of(name, slices)


@needs_compiler
def test_a_slice_that_is_not_built():
  with pytest.raises(ValueError, match=r"v5e:3x7.*expected the shape of a"):
    devices_of("v5e:3x7")


@pytest.mark.parametrize(
  ("name", "extra"), [("v5e:2x2", "tpu"), ("h200:1", "cuda")]
)
def test_a_missing_compiler(monkeypatch, capsys, name, extra):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  flags = ["--config", "tests/train/tiny.py", "--topology", name]
  assert main.main(["preflight", *flags]) == 2
  assert f'pip install "marjax[{extra}]"' in capsys.readouterr().err


def test_the_compiler_keeps_the_flags_that_it_was_given(monkeypatch):
  monkeypatch.setenv("LIBTPU_INIT_ARGS", "--some=1")
  topology._prepare()
  flags = os.environ["LIBTPU_INIT_ARGS"].split()
  assert flags[0] == "--some=1"
  assert len(flags) == 2
  topology._prepare()
  assert os.environ["LIBTPU_INIT_ARGS"].split() == flags


def test_chips_have_distinct_names_and_sensible_numbers():
  tpus = [chip for kind, chip in CHIPS.items() if kind.startswith("TPU")]
  assert len({chip.name for chip in tpus}) == len(tpus) == 4
  for chip in CHIPS.values():
    # Each can multiply far more often than it can load or send.
    assert chip.tflops * 1000 > 50 * chip.memory_gbps > 100 * chip.link_gbps
