"""Muon: which matrices are orthogonal, of what size, and a run that goes on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from train.shared import assert_same, at_batch, tiny

from marjax.arrays import named
from marjax.experiment import TrainingConfig
from marjax.train import loop
from marjax.train.optimizer import make_optimizer, matrices

KINDS = {
  "masked": small.EXPERIMENT,
  "random": small.of_kind("random"),
  "guided, codes": small.of_kind("guided", is_coded=True),
}

NESTEROV = 1 + 0.9 / (1 + 0.9)
"""Of a first step, by looking ahead, as momentum is 0.9."""

RECIPE = TrainingConfig(
  batch_size=4, num_steps=4, optimizer="muon", weight_decay=0.0
)


@functools.cache
def first_move(kind, recipe=RECIPE):
  """Parameters' names → what one step of rate 1 with random gradients adds."""
  params = small.params(model=KINDS[kind].model)
  random = np.random.default_rng(0)
  gradients = jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32),
    params,
  )
  optimizer = make_optimizer(recipe, lambda count: 1.0)
  state = optimizer.init(params)
  moves, _ = jax.jit(optimizer.update)(gradients, state, params)
  return named(moves), named(gradients)


def as_matrices(name, array):
  """[matrices, inputs, outputs] of a kernel; None if it is Adam's."""
  parts = name.split("/")
  if parts[-1] != "kernel":
    return None
  layers = array.shape[:1] if "layers" in parts else (1,)
  if parts[-2] == "qkv":  # three matrices, not one
    array = np.moveaxis(array, -3, -4)
    return array.reshape(layers[0] * 3, array.shape[-3], -1)
  if parts[-2] == "projection":
    return array.reshape(layers[0], -1, array.shape[-1])
  if parts[-2] in ("query", "to_keys", "to_values"):
    return array.reshape(layers[0], array.shape[-3], -1)
  ends = ("embed_token", "embed_x", "time_in", "final_linear", "linear")
  if parts[-2] in ends:
    return None
  return array.reshape(layers[0], *array.shape[-2:])


@pytest.mark.parametrize("kind", KINDS)
def test_every_hidden_matrix_moves_along_an_orthogonal_one(kind):
  moves, gradients = first_move(kind)
  count = 0
  for name, move in moves.items():
    whole = as_matrices(name, np.asarray(move))
    if whole is None:
      # Adam's first step is the sign of the gradient.
      sizes = -np.asarray(move) * np.sign(gradients[name])
      np.testing.assert_allclose(sizes, NESTEROV, atol=2e-2, err_msg=name)
      continue
    size = 0.2 * np.sqrt(max(whole.shape[1:]))
    values = np.linalg.svd(whole / size, compute_uv=False)
    # Five steps of Newton-Schulz end near 1, but for what begins near 0.
    assert np.quantile(values, 0.1) > 0.6, (name, values)
    assert values.max() < 1.3, (name, values)
    count += 1
  assert count > 8
  marks = jax.tree.leaves(
    matrices(small.params(model=KINDS[kind].model)),
    is_leaf=lambda x: x is None or isinstance(x, tuple),
  )
  assert count == sum(mark is not None for mark in marks)


def test_what_decays_is_what_decays_with_adamw():
  """Kernels of the backbone, and none of the head's."""
  bare, _ = first_move("masked")
  decayed, _ = first_move(
    "masked", dataclasses.replace(RECIPE, weight_decay=0.5)
  )
  params = named(small.params(model=small.MODEL))
  for name, move in bare.items():
    is_matrix = as_matrices(name, np.asarray(move)) is not None
    share = 0.5 if is_matrix and name.startswith("backbone/") else 0.0
    np.testing.assert_allclose(
      decayed[name], move - share * params[name], atol=1e-5, err_msg=name
    )


@pytest.mark.usefixtures("shared_programs")
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, monkeypatch):
  straight = loop.train(tiny(optimizer="muon"), tmp_path / "straight")

  class Stop(Exception):
    pass

  def stop(batch):
    raise Stop

  with monkeypatch.context() as patch:
    at_batch(patch, 7, stop)
    with pytest.raises(Stop):
      loop.train(tiny(optimizer="muon"), tmp_path / "stopped")
  state = loop.train(tiny(optimizer="muon"), tmp_path / "stopped")
  assert_same(state, straight)


@pytest.mark.usefixtures("shared_programs")
def test_another_optimizer_does_not_go_on(tmp_path):
  loop.train(tiny(num_steps=2), tmp_path)
  with pytest.raises(ValueError, match=r"training\.optimizer.*fixed"):
    loop.train(tiny(num_steps=2, optimizer="muon"), tmp_path)
