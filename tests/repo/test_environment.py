"""The tests run with what tests/conftest.py promises."""

import os

import jax
import jax.numpy as jnp
import pytest

from marjax import keys


def test_there_are_eight_devices():
  assert jax.device_count() == 8


def test_compiled_programs_are_kept():
  folder = jax.config.jax_compilation_cache_dir
  jax.jit(lambda x: x * 2 + 1)(jnp.ones(3)).block_until_ready()
  assert any(name.startswith("jit_") for name in os.listdir(folder))


def test_signatures_are_checked():
  assert keys.root(0).shape == ()
  with pytest.raises(Exception, match="Type-check error"):
    keys.stream(jnp.ones(3), "order")
