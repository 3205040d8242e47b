"""What every kind of noise must hold to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.head.noise import KeyedNoise, RecordedNoise
from marjax.protocols import Noise

SHAPE, STEPS = (3,), 4


def keyed(batch=(5, 2)):
  return KeyedNoise(jax.random.split(jax.random.key(0), batch))


def recorded(batch=(5, 2)):
  start, *steps = jax.random.normal(
    jax.random.key(1), (1 + STEPS, *batch, *SHAPE)
  )
  return RecordedNoise(start, jnp.stack(steps, axis=len(batch)))


ALL = {"keyed": keyed, "recorded": recorded}


@pytest.fixture(params=ALL)
def noise(request):
  return ALL[request.param]()


def at_all(noise):
  return noise.at_steps(jnp.arange(STEPS), SHAPE)


def test_shapes(noise):
  assert isinstance(noise, Noise)
  assert noise.initial(SHAPE).shape == (5, 2, *SHAPE)
  assert at_all(noise).shape == (STEPS, 5, 2, *SHAPE)
  noise.check((5, 2), SHAPE, STEPS, "noise")


def test_the_batch_comes_first_in_every_leaf(noise):
  """So cutting, permuting and placing it are `tree.map`."""
  assert all(leaf.shape[:2] == (5, 2) for leaf in jax.tree.leaves(noise))
  order = jnp.array([3, 1])
  part = jax.tree.map(lambda leaf: leaf[order], noise)
  np.testing.assert_array_equal(
    part.initial(SHAPE), noise.initial(SHAPE)[order]
  )
  np.testing.assert_array_equal(at_all(part), at_all(noise)[:, order])


def test_evaluations_are_numbered_by_how_many_are_left(noise):
  last = noise.at_steps(jnp.array([0]), SHAPE)
  np.testing.assert_array_equal(last[0], at_all(noise)[0])
  turned = noise.at_steps(jnp.arange(STEPS)[::-1], SHAPE)
  np.testing.assert_array_equal(turned[::-1], at_all(noise))


def test_draws_differ_between_evaluations_and_tokens(noise):
  values = np.asarray(
    jnp.concatenate([noise.initial(SHAPE)[None], at_all(noise)])
  )
  assert len(np.unique(values)) == values.size


def test_it_comes_again_inside_jit(noise):
  again = jax.jit(lambda n: (n.initial(SHAPE), at_all(n)))(noise)
  np.testing.assert_array_equal(again[0], noise.initial(SHAPE))
  np.testing.assert_array_equal(again[1], at_all(noise))


def test_a_recording_uses_its_first_steps_first():
  noise = recorded((5,))
  first = noise.at_steps(jnp.array([STEPS - 1]), SHAPE)[0]
  np.testing.assert_array_equal(first, noise.steps[:, 0])


@pytest.mark.parametrize(
  ("batch", "shape", "steps", "message"),
  [
    ((5, 3), SHAPE, STEPS, r"noise\.\w+ has shape .*; expected"),
    ((5, 2), (4,), STEPS, r"has shape .*; expected"),
    ((5, 2), SHAPE, STEPS + 1, "recorded for 4 steps; expected 5"),
  ],
)
def test_noise_of_other_tokens_is_refused(batch, shape, steps, message):
  with pytest.raises(ValueError, match=message):
    recorded().check(batch, shape, steps, "noise")


def test_keys_of_another_batch_or_style_are_refused():
  with pytest.raises(ValueError, match=r"row_keys has shape \(5, 2\)"):
    keyed().check((5,), SHAPE, STEPS, "noise")
  with pytest.raises(ValueError, match="old style"):
    KeyedNoise(jnp.zeros((5, 2), jnp.uint32)).check((5,), SHAPE, 1, "noise")


def test_a_recording_may_be_of_the_start_alone():
  noise = RecordedNoise(recorded().start)
  noise.check((5, 2), SHAPE, 1, "noise")
  again = jax.jit(lambda noise: noise.initial(SHAPE))(noise)
  np.testing.assert_array_equal(again, recorded().start)
  with pytest.raises(ValueError, match=r"without steps.*expected steps \[\*"):
    at_all(noise)
  with pytest.raises(ValueError, match=r"noise\.start has shape"):
    noise.check((5, 3), SHAPE, 1, "noise")
