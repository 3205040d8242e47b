"""Chips to compile for: those there are, and what is said of others."""

import importlib.util
import os

import jax
import pytest

from marjax.cli import main
from marjax.parallel.chips import CHIPS, chip_of
from marjax.parallel.mesh import count_slices
from marjax.preflight import topology
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


def test_the_devices_at_hand():
  assert devices_of("here") == jax.devices()


@pytest.mark.parametrize(
  ("name", "slices"),
  [("v7:2x2", 1), ("v5e", 1), ("v5e:4", 1), ("2x2", 1), ("v5e:2x2", 0)],
)
def test_a_topology_of_another_form(name, slices):
  with pytest.raises(ValueError, match="one of v4, v5e, v5p, v6e, such as"):
    devices_of(name, slices)


@needs_compiler
def test_a_slice_that_is_not_built():
  with pytest.raises(ValueError, match=r"v5e:3x7.*expected the shape of a"):
    devices_of("v5e:3x7")


def test_a_missing_compiler(monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  flags = ["--config", "tests/train/tiny.py", "--topology", "v5e:2x2"]
  assert main.main(["preflight", *flags]) == 2
  assert 'pip install "marjax[tpu]"' in capsys.readouterr().err


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
