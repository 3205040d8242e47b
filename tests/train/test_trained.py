"""What is frozen stays, what is slowed is slower, low-rank updates are all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train import shared

from marjax.arrays import named
from marjax.layers import lora
from marjax.parallel.mesh import host_mesh
from marjax.train import trained
from marjax.train.step import make_train_program

FACTORS = 'factors=[("head/*", 0.0), ("backbone/encoder/*", 0.25)]'
LORA = (
  "init_from=somewhere",
  "lora.rank=2",
  'factors=[("*class_embedding*", 1.0)]',
)


def tiny(*changes):
  recipe = [f"training.{change}" for change in changes]
  return shared.tiny(*recipe, clip_norm=1e6)


@functools.cache
def stepped(*changes):
  """State before and after a step from weights that are not tame."""
  program = make_train_program(tiny(*changes), host_mesh(), 32)
  begun = program.init()
  random = np.random.default_rng(0)
  base = {k: v for k, v in begun.params.items() if k != lora.LORA}
  base = jax.tree.map(lambda a: a + 0.1 * random.normal(size=a.shape), base)
  base = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), base)
  params = {**begun.params, **base}
  batch = {
    name: np.asarray(random.integers(0, 2, leaf.shape), leaf.dtype)
    for name, leaf in program.abstract_batch.items()
  }
  begun = type(begun)(begun.step, params, params, begun.opt_state)
  before = jax.tree.map(np.array, begun)
  begun = jax.tree.map(jnp.asarray, before)
  state, metrics = program.step(begun, batch)
  return before, jax.tree.map(np.array, state), metrics


def moves(*changes):
  before, after, _ = stepped(*changes)
  old, new = named(before.params), named(after.params)
  return {name: new[name] - old[name] for name in old}


def test_what_is_frozen_stays_to_the_bit():
  before, after, metrics = stepped(FACTORS)
  for tree in ("params", "ema_params"):
    old, new = named(getattr(before, tree)), named(getattr(after, tree))
    for name in old:
      is_same = np.array_equal(old[name], new[name])
      assert is_same == name.startswith("head/"), name
  assert not [name for name in named(after.opt_state) if "/head/" in name]
  _, _, plain = stepped()
  # The loss is that of all, the norm that of what is trained.
  np.testing.assert_allclose(metrics["loss"], plain["loss"], rtol=1e-5)
  assert metrics["grad_norm"] < 0.9 * plain["grad_norm"]


def test_a_factor_scales_the_update():
  whole, slowed = moves(), moves(FACTORS)
  for name, move in whole.items():
    # Attention does not see the bias of its keys: what Adam makes of that
    # gradient is rounding.
    if name.startswith("head/") or name.endswith("qkv/bias"):
      continue
    factor = 0.25 if name.startswith("backbone/encoder/") else 1.0
    np.testing.assert_allclose(
      slowed[name], factor * move, atol=2e-6, err_msg=name
    )
  assert sum(np.abs(move).max() > 1e-4 for move in whole.values()) > 40


def test_low_rank_updates_are_all_that_is_trained():
  before, after, metrics = stepped(*LORA)
  changed = {name for name, move in moves(*LORA).items() if np.any(move)}
  ups = {name for name in named(before.params) if name.endswith("/up")}
  assert changed >= ups
  assert len(ups) > 8
  for name in changed:
    assert name.startswith("lora/") or "class_embedding" in name
  assert {
    name.rpartition("mu/")[2]
    for name in named(after.opt_state)
    if "mu/" in name
  } == {
    name
    for name in named(before.params)
    if name.startswith("lora/") or "class_embedding" in name
  }
  # At the start they change nothing.
  np.testing.assert_allclose(metrics["loss"], stepped()[2]["loss"], rtol=1e-5)
  config = tiny(*LORA).training.lora
  plain = {k: v for k, v in after.params.items() if k != lora.LORA}
  merged = lora.merged(after.params, config)
  assert jax.tree.structure(merged) == jax.tree.structure(plain)
  kernel = merged["head"]["net"]["condition"]["kernel"]
  assert np.any(kernel != plain["head"]["net"]["condition"]["kernel"])


NAMES = ("backbone/a/kernel", "head/b/kernel", "lora/head/b/up")


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    (['factors=[("hed/*", 0.0)]'], r"training\.factors has 'hed/\*', which ma"),
    (['factors=[("*", 0.0)]'], r"freezes every parameter; expected one at le"),
    ([*LORA[:2], 'factors=[("*", 0.0)]'], r"freezes every parameter; expec"),
  ],
)
def test_patterns_that_do_nothing_are_one_sentence(changes, reason):
  with pytest.raises(ValueError, match=reason) as caught:
    trained.factors(tiny(*changes).training, NAMES)
  assert str(caught.value).endswith(".")


def test_the_first_pattern_counts():
  training = tiny('factors=[("head/*", 0.5), ("*kernel", 0.0)]').training
  assert trained.factors(training, NAMES) == dict(
    zip(NAMES, (0.0, 0.5, 1.0), strict=True)
  )


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ("lora.rank=2", "would update random weights; expected a model to start"),
    ('init_fresh=["head/*"]', "init_from is empty; expected the model that"),
    ('factors=[("head/*", -1.0)]', r"factors\[0\]\[1\] is -1\.0.*; expected 0"),
  ],
)
def test_a_recipe_that_makes_no_sense_is_one_sentence(change, reason):
  with pytest.raises(ValueError, match=reason):
    tiny(change)
