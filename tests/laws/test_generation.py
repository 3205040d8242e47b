"""The reveal loop: nothing but (seed, image id, position, purpose) matters."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from marjax.generate import guidance, reveal
from marjax.generate.draws import draw_batch
from marjax.generate.settings import Settings
from marjax.head.noise import KeyedNoise
from marjax.head.reverse import ReverseSettings


@functools.cache
def tokens_of(count, first=0, buckets=2, scale=2.0, ar_steps=6):
  """Tokens of images first .. first + count - 1 of one seed, and draws."""
  settings = Settings(
    num_ar_steps=ar_steps,
    guidance_scale=scale,
    num_buckets=buckets,
    head=ReverseSettings(num_steps=8, start=900),
  ).for_model(small.MODEL)
  static = reveal.static_for(small.MODEL, settings)
  draws = draw_batch(
    jax.random.key(3), first + jnp.arange(count), small.MODEL.backbone
  )
  labels = (first + jnp.arange(count)) % 10
  asked = (labels, draws, reveal.numbers_for(static.plan, settings))
  *after, tokens = small.tokens_after(static, small.params(), *asked)
  return tokens, np.stack([*after, tokens]), draws


@pytest.mark.parametrize("count", [1, 7])
def test_batch_size_does_not_change_images(count):
  whole = tokens_of(64)[0]
  part = tokens_of(count)[0]
  np.testing.assert_allclose(part, whole[:count], atol=1e-4)


def test_place_in_the_batch_does_not_change_images():
  whole = tokens_of(64)[0]
  late = tokens_of(7, first=5)[0]
  np.testing.assert_allclose(late, whole[5:12], atol=1e-4)


@pytest.mark.parametrize("buckets", [1, 4])
def test_buckets_do_not_change_images(buckets):
  np.testing.assert_allclose(
    tokens_of(7, buckets=buckets)[0], tokens_of(7)[0], atol=1e-4
  )


def test_each_position_is_revealed_once_and_then_stays():
  tokens, after, draws = tokens_of(7)
  is_known = np.asarray((after != 0).any(-1))
  plan = small.plan(16, 6, 2)
  ends = [*[n for s in plan.segments for n in s.num_known][1:], 16]
  assert is_known.sum(-1).T.tolist() == [ends] * 7
  for step, known in enumerate(ends):
    now = np.take_along_axis(is_known[step], np.asarray(draws.order), 1)
    assert now[:, :known].all()
    assert (after[step][is_known[step]] == tokens[is_known[step]]).all()


def test_guidance_one_runs_one_pass_and_equals_equal_passes():
  assert not guidance.is_guided(1.0)
  one = tokens_of(7, scale=1.0)[0]
  almost = tokens_of(7, scale=1.0 + 1e-6)[0]
  np.testing.assert_allclose(one, almost, atol=1e-3)
  assert jnp.abs(one - tokens_of(7, scale=3.0)[0]).max() > 1e-2


def test_one_step_and_one_step_per_token():
  for ar_steps in (1, 16):
    tokens = tokens_of(2, ar_steps=ar_steps, buckets=3)[0]
    assert jnp.isfinite(tokens).all()
    assert (jnp.abs(tokens) > 0).all()


def test_draws_are_addressed_by_image_id_and_position():
  whole = draw_batch(jax.random.key(3), jnp.arange(5), small.MODEL.backbone)
  part = draw_batch(jax.random.key(3), jnp.array([4, 2]), small.MODEL.backbone)
  for index, image in enumerate((4, 2)):
    assert (whole.order[image] == part.order[index]).all()
    for draws, row in ((whole, image), (part, index)):
      assert isinstance(draws.noise, KeyedNoise)
      assert draws.noise.row_keys[row].shape == (16,)
    assert (
      jax.random.key_data(whole.noise.row_keys[image])
      == jax.random.key_data(part.noise.row_keys[index])
    ).all()
  first = jax.random.key_data(whole.noise.row_keys).reshape(-1, 2)
  assert len(np.unique(np.asarray(first), axis=0)) == 5 * 16


@pytest.mark.parametrize(
  ("length", "steps", "buckets"),
  [(256, 64, 8), (256, 256, 3), (16, 16, 99), (65_536, 1024, 16)],
)
def test_a_plan_covers_every_token_once(length, steps, buckets):
  plan = small.plan(length, steps, buckets)
  revealed = [n for s in plan.segments for n in s.num_revealed]
  assert sum(revealed) == length
  assert len(revealed) == steps
  assert len(plan.segments) <= buckets
  assert f"{length} tokens in {steps} steps" in str(plan)


def test_more_buckets_never_cost_more():
  def slots(buckets):
    plan = small.plan(256, 64, buckets)
    return sum(
      len(s.num_known) * (64 + s.encoder_length) for s in plan.segments
    )

  exact = slots(64)
  wastes = [slots(buckets) / exact for buckets in (1, 4, 8)]
  # Encoder padding over exact lengths, 64 buffer slots included.
  assert wastes == sorted(wastes, reverse=True)
  assert wastes[2] < 1.15


@pytest.mark.parametrize("is_edit", [False, True])
@pytest.mark.parametrize(("length", "steps"), [(9, 9), (33, 9), (20, 8)])
def test_a_plan_is_the_cheapest_of_all(length, steps, is_edit):
  def work(pieces):
    most = max(piece.encoder_length for piece in pieces)
    widest = max(piece.head_width for piece in pieces)
    return len(pieces) * (4 + most + 20 * widest)

  def cost(cuts):
    return sum(work(alone[a:b]) for a, b in itertools.pairwise(cuts))

  alone = [
    dataclasses.replace(
      segment,
      first_step=segment.first_step + n,
      num_known=segment.num_known[n : n + 1],
      num_revealed=segment.num_revealed[n : n + 1],
    )
    for segment in small.plan(length, steps, is_edit=is_edit).segments
    for n in range(len(segment.num_known))
  ]
  for count in range(1, steps + 1):
    plan = small.plan(length, steps, count, 4, 20.0, is_edit=is_edit)
    least = min(
      cost([0, *cuts, steps])
      for inner in range(count)
      for cuts in itertools.combinations(range(1, steps), inner)
    )
    chosen = [segment.first_step for segment in plan.segments]
    assert cost([*chosen, steps]) == least


def test_as_few_segments_as_waste_little_unless_told():
  def work(plan):
    return sum(
      len(s.num_known) * (64 + 256 + 64 + s.encoder_length + s.head_width)
      for s in plan.segments
    )

  least = work(small.plan(256, 64, 64))
  chosen = small.plan(256, 64)
  count = len(chosen.segments)
  assert chosen == small.plan(256, 64, count)
  assert work(chosen) <= 1.03 * least < work(small.plan(256, 64, count - 1))
  assert 4 <= count <= 12
  assert len(small.plan(1024, 128, num_buffer=1).segments) <= 16


def test_what_a_last_step_writes_beyond_the_end_is_finite():
  settings = Settings(
    num_ar_steps=5,
    guidance_scale=2.0,
    num_buckets=1,
    head=ReverseSettings(num_steps=3, start=900),
  ).for_model(small.MODEL)
  static = reveal.static_for(small.MODEL, settings)
  assert static.plan.widest > static.plan.segments[0].num_revealed[-1]
  draws = draw_batch(jax.random.key(0), jnp.arange(2), small.MODEL.backbone)
  scales, temperature, walks = jax.tree.map(
    jnp.asarray, reveal.numbers_for(static.plan, settings)
  )
  params = small.params()
  carry, fixed = reveal.begin(static, params, jnp.arange(2), draws)
  carry = reveal.run_segment(
    static, 0, params, carry, fixed, scales, temperature, walks[0]
  )
  assert jnp.isfinite(carry.tokens).all()
