"""Diffusion steps that change over the autoregressive steps, and their plan."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.extend.core import jaxprs_in_params

from marjax.generate import reveal
from marjax.generate.draws import Draws, draw_batch
from marjax.generate.plan import MAX_STAGES, head_steps
from marjax.generate.settings import Settings
from marjax.head.noise import RecordedNoise
from marjax.head.reverse import ReverseSettings
from marjax.parallel.mesh import make_mesh
from marjax.pipeline import Pipeline
from marjax.release import workdir
from marjax.release.card import Card
from marjax.schema import from_dict, to_dict


def test_counts_by_hand():
  in_pairs = np.repeat([50, 44, 37, 31, 24, 18, 11, 5], 2)
  assert head_steps(16, 50, 5) == tuple(in_pairs)
  assert head_steps(3, 10, 4) == (10, 7, 4)
  # Ten steps in eight stages: ⌊8 n / 10⌋ is 0 0 1 2 3 4 4 5 6 7.
  assert head_steps(10, 2, 9) == (2, 2, 3, 4, 5, 6, 6, 7, 8, 9)
  assert head_steps(1, 50, 5) == (50,)
  assert head_steps(4, 50) == head_steps(4, 50, 50) == (50,) * 4


@pytest.mark.parametrize("buckets", [1, 8, 12])
@pytest.mark.parametrize(("steps", "final"), [(64, 5), (64, 48), (7, 5)])
def test_segments_end_where_the_diffusion_steps_change(steps, final, buckets):
  wanted = head_steps(steps, 50, final)
  plan = small.plan(
    256, steps, buckets, num_head_steps=50, final_head_steps=final
  )
  found = [
    segment.num_head_steps
    for segment in plan.segments
    for _ in segment.num_known
  ]
  assert tuple(found) == wanted
  stages = len(set(wanted))
  assert stages <= MAX_STAGES
  assert stages <= len(plan.segments) <= max(buckets, stages)


def test_the_plan_is_the_cheapest_with_the_head_by_its_head_steps():
  def cost(plan):
    return sum(
      len(part.num_known)
      * (
        4
        + part.encoder_length
        + 30 * part.num_head_steps / 20 * part.head_width
      )
      for part in plan.segments
    )

  plan = small.plan(100, 16, 10, 4, 30.0, num_head_steps=20, final_head_steps=2)
  pieces = small.plan(
    100, 16, 16, 4, 30.0, num_head_steps=20, final_head_steps=2
  ).segments
  assert len(pieces) == 16
  starts = {0, 2, 4, 6, 8, 10, 12, 14}
  best = min(
    cost_of_cuts(pieces, sorted(starts | set(more)), 4, 30.0)
    for more in itertools.combinations(range(1, 16, 2), 2)
  )
  assert cost(plan) == pytest.approx(best)


def cost_of_cuts(pieces, starts, num_buffer, head_share):
  """Padded work of the segments that start at these steps."""
  total = 0.0
  for first, end in itertools.pairwise([*starts, len(pieces)]):
    part = pieces[first:end]
    slots = num_buffer + max(piece.num_known[0] for piece in part)
    width = max(piece.num_revealed[0] for piece in part)
    share = head_share * part[0].num_head_steps / 20
    total += (end - first) * (slots + share * width)
  return total


def test_a_plan_shows_the_diffusion_steps_where_they_vary():
  plan = small.plan(16, 2, num_head_steps=50, final_head_steps=5)
  heading, first, last = str(plan).splitlines()[1:]
  assert heading.endswith("  head steps")
  assert (first.split()[-1], last.split()[-1]) == ("50", "5")
  assert len(heading) == len(first) == len(last)
  assert "head steps" not in str(small.plan(16, 2, num_head_steps=50))


def settings_of(final, first=8, buckets=1):
  return Settings(
    num_ar_steps=3,
    guidance_scale=2.0,
    num_buckets=buckets,
    head=ReverseSettings(num_steps=first, final_num_steps=final, start=900),
  ).for_model(small.MODEL)


def draws_of():
  return draw_batch(jax.random.key(3), jnp.arange(5), small.MODEL.backbone)


def run(settings, draws=None):
  """Tokens of five images, and those after each step."""
  static = reveal.static_for(small.MODEL, settings)
  draws = draws_of() if draws is None else draws
  asked = (jnp.arange(5), draws, reveal.numbers_for(static.plan, settings))
  after = small.tokens_after(static, small.params(), *asked)
  return after[-1], np.stack(after)


@functools.cache
def tokens_of(final, first=8, buckets=1):
  return [np.asarray(part) for part in run(settings_of(final, first, buckets))]


def test_buckets_do_not_change_images():
  one, many = tokens_of(3)[0], tokens_of(3, buckets=9)[0]
  np.testing.assert_allclose(one, many, atol=1e-4)
  assert np.abs(one - tokens_of(None)[0]).max() > 1e-2


def test_an_unchanging_number_is_as_none():
  constant, never = settings_of(8), settings_of(None)
  plans = [reveal.plan_for(small.MODEL, s) for s in (constant, never)]
  assert plans[0] == plans[1]
  np.testing.assert_array_equal(tokens_of(8)[0], tokens_of(None)[0])


def test_the_first_step_draws_as_with_its_own_number_throughout():
  changing, constant = tokens_of(3)[1], tokens_of(None)[1]
  np.testing.assert_allclose(changing[0], constant[0], atol=1e-4)
  is_known = (changing[1] != 0).any(-1)
  assert np.abs((changing[1] - constant[1])[is_known]).max() > 1e-2


def test_the_reverse_process_of_each_segment_has_its_length():
  settings = settings_of(3)
  static = reveal.static_for(small.MODEL, settings)
  numbers = reveal.numbers_for(static.plan, settings)
  params, draws = jax.eval_shape(small.params), jax.eval_shape(draws_of)
  jaxpr = jax.make_jaxpr(reveal.generate, static_argnums=0)(
    static, params, jnp.arange(5), draws, numbers
  )
  # In each segment the blocks of the backbone come first, the head last.
  ends = [evaluations(inner[-1]) for _, *inner in lengths(jaxpr.jaxpr)]
  assert ends == [8, 6, 3]


def evaluations(scan):
  """Times that the innermost of nested scans runs."""
  length, *inner = scan
  return length * (evaluations(inner[-1]) if inner else 1)


def lengths(jaxpr):
  """Lengths of scans, each with those of the scans inside it, if any."""
  for equation in jaxpr.eqns:
    inner = [
      found
      for part in jaxprs_in_params(equation.params)
      for found in lengths(part)
    ]
    if equation.primitive.name == "scan":
      yield [equation.params["length"], *inner]
    else:
      yield from inner


def test_recorded_draws_replay_it():
  draws = draws_of()
  steps = draws.noise.at_steps(jnp.arange(7, -1, -1), (4,))
  recorded = RecordedNoise(
    draws.noise.initial((4,)), jnp.moveaxis(steps, 0, -2)
  )
  replayed = run(settings_of(3), Draws(draws.order, recorded))[0]
  np.testing.assert_allclose(replayed, tokens_of(3)[0], atol=1e-4)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"final_num_steps": 1}, "final_num_steps is 1; expected 2 to"),
    (
      {"num_steps": 20, "start": 30, "final_num_steps": 32},
      "final_num_steps is 32; expected 2 to 31 for a reverse process that"
      " starts at 30",
    ),
  ],
)
def test_impossible_numbers_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    ReverseSettings(**fields)


def test_cards_from_before_there_was_a_final_number_load():
  card = small.card()
  mapping = to_dict(card)
  for fields in (mapping["sampling"], *mapping["presets"].values()):
    del fields["head"]["final_num_steps"]
  assert from_dict(Card, mapping) == card
  changing = small.card(
    sampling=Settings(head=ReverseSettings(final_num_steps=5))
  )
  assert from_dict(Card, to_dict(changing)) == changing


def test_every_checkpoint_knows_quick_unless_it_has_its_own():
  card = workdir.card_of(small.EXPERIMENT)
  pipe = Pipeline(card, {}, make_mesh())
  quick = pipe.settings({"head": ReverseSettings.PRESETS["quick"]})
  assert pipe.settings("quick") == quick
  assert (quick.head.num_steps, quick.num_ar_steps) == (10, 6)
  own = Pipeline(small.card(), {}, make_mesh())
  assert own.settings("quick").num_ar_steps == 2
  with pytest.raises(ValueError, match="no preset 'slow'; small has: quick"):
    pipe.settings("slow")
