"""What editing promises, whatever the weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from marjax.generate.draws import draw_batch
from marjax.generate.reveal import Given, generate, numbers_for, static_for
from marjax.generate.settings import Settings
from marjax.head.reverse import ReverseSettings
from marjax.latents.images import to_uint8
from marjax.tokens import regions

SETTINGS = Settings(
  num_ar_steps=6,
  guidance_scale=2.0,
  num_buckets=2,
  head=ReverseSettings(num_steps=8, start=900),
)
CELL = 2


@pytest.fixture(scope="module")
def pipe():
  return small.pipe()


def pictures(count: int) -> np.ndarray:
  return to_uint8(small.images(count)["image"])


def tokens_by_token(pipe, latents):
  from marjax.tokens.patches import patchify

  return np.asarray(patchify(np.asarray(latents), pipe.card.codec.patch))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_kept_latents_are_bit_equal(pipe, share):
  images = pictures(3)
  mask = regions.scattered(8, CELL, share, seed=1)
  edited = pipe.edit(images, mask, [1, 2, 3], settings=SETTINGS)
  before = pipe.encode(images)
  np.testing.assert_array_equal(edited.mask, np.stack([mask] * 3))
  kept = ~edited.mask
  np.testing.assert_array_equal(edited.latents[kept], before[kept])
  drawn = edited.latents[edited.mask] != before[edited.mask]
  assert drawn.mean() > 0.99
  np.testing.assert_array_equal(edited.images, pipe.decode(edited.latents))


@pytest.mark.slow
def test_an_edit_goes_on_as_the_generation_would_have():
  settings = SETTINGS.for_model(small.MODEL)
  draws = draw_batch(jax.random.key(3), jnp.arange(4), small.MODEL.backbone)
  labels = jnp.arange(4, dtype=jnp.int32)

  def run(is_edit, given):
    static = static_for(small.MODEL, settings, is_edit)
    numbers = numbers_for(static.plan, settings)
    asked = (labels, draws, numbers, given)
    return small.tokens_after(static, small.params(), *asked)

  *after, whole = run(False, None)
  known_after = static_for(small.MODEL, settings).plan.known_after
  for step in (0, 2, 4):
    # Tokens that are not given are noise here, and must not matter.
    noise = jax.random.normal(jax.random.key(step), whole.shape)
    rank = jnp.argsort(draws.order, axis=1)
    is_given = (rank < known_after[step])[..., None]
    given = Given(
      jnp.where(is_given, after[step], noise),
      jnp.full((4,), known_after[step], jnp.int32),
    )
    *_, continued = run(True, given)
    np.testing.assert_allclose(continued, whole, atol=2e-4)


def test_nothing_given_is_a_generation():
  settings = SETTINGS.for_model(small.MODEL)
  draws = draw_batch(jax.random.key(3), jnp.arange(2), small.MODEL.backbone)
  labels = jnp.zeros((2,), jnp.int32)
  nothing = Given(jnp.ones((2, 16, 4)), jnp.zeros((2,), jnp.int32))
  results = []
  for is_edit, given in ((False, None), (True, nothing)):
    static = static_for(small.MODEL, settings, is_edit)
    numbers = numbers_for(static.plan, settings)
    args = (labels, draws, numbers, given)
    run = jax.jit(generate, static_argnums=0)
    results.append(run(static, small.params(), *args))
  np.testing.assert_allclose(*results, atol=2e-4)


def test_what_is_kept_has_influence_even_in_one_step(pipe):
  # The kept tokens end in the middle of the only step.
  images = pictures(2)
  mask = regions.half(8, "left")
  scrambled = np.where(mask[..., None], images, 255 - images)
  once = dataclasses.replace(SETTINGS, num_ar_steps=1)
  one, other = (
    pipe.edit(image, mask, [1, 2], settings=once).latents[:, :, :4]
    for image in (images, scrambled)
  )
  assert (one != other).mean() > 0.9


def test_what_is_masked_has_no_influence(pipe):
  images = pictures(2)
  mask = regions.half(8, "left")
  scrambled = np.where(mask[..., None], 255 - images, images)
  edits = [
    pipe.edit(image, mask, [1, 2], settings=SETTINGS)
    for image in (images, scrambled)
  ]
  np.testing.assert_array_equal(edits[0].latents, edits[1].latents)


def test_an_edit_does_not_depend_on_its_batch(pipe):
  images = pictures(3)
  masks = np.stack(
    [
      regions.box(8, 1, 1, 3, 3),
      regions.half(8, "top"),
      regions.scattered(8, CELL, 0.8, seed=0),
    ]
  )
  labels = [4, 5, 6]
  whole = pipe.edit(images, masks, labels, settings=SETTINGS)
  split = pipe.edit(images, masks, labels, settings=SETTINGS, batch_size=1)
  np.testing.assert_allclose(split.latents, whole.latents, atol=1e-3)
  first = pipe.edit(images[0], masks[0], 4, settings=SETTINGS)
  np.testing.assert_allclose(first.latents, whole.latents[:1], atol=1e-3)


def test_masks_are_rounded_outwards_and_given_back(pipe):
  mask = np.zeros((8, 8), bool)
  mask[3, 5] = True
  edited = pipe.edit(pictures(1), mask, settings=SETTINGS)
  expected = np.zeros((8, 8), bool)
  expected[2:4, 4:6] = True
  np.testing.assert_array_equal(edited.mask[0], expected)


def test_labels_seeds_and_variations_matter(pipe):
  image, mask = pictures(1)[0], regions.half(8, "right")

  def latents(label, seed=0, **more):
    edited = pipe.edit(image, mask, label, seed, SETTINGS, **more)
    return edited.latents

  one = latents(1)
  assert (latents(2) != one).any()
  assert (latents(1, seed=1) != one).any()
  several = latents(1, num_images=3)
  np.testing.assert_allclose(several[:1], one, atol=1e-3)
  assert (several[0] != several[1]).any()
  assert latents([1, 2, 3]).shape == several.shape


def test_pixels_can_be_kept(pipe):
  # A codec that does not give an image back: pixels off by more than a level.
  codec = dataclasses.replace(pipe.card.codec, mean=0.001, std=3.0)

  class Blurred(type(codec)):
    def decode(self, params, latents):
      return super().decode(params, latents) * 0.9

  blurred = Blurred(**dataclasses.asdict(codec))
  card = dataclasses.replace(pipe.card, codec=blurred)
  lossy = dataclasses.replace(pipe, card=card)
  image, mask = pictures(1), regions.box(8, 2, 2, 2, 2)
  kept = lossy.edit(image, mask, 1, settings=SETTINGS, keep_pixels=True)
  plain = lossy.edit(image, mask, 1, settings=SETTINGS)
  np.testing.assert_array_equal(kept.images[~kept.mask], image[~kept.mask])
  assert (plain.images[~kept.mask] != image[~kept.mask]).any()
  drawn = kept.mask
  np.testing.assert_array_equal(kept.images[drawn], plain.images[drawn])


def test_no_mask_compiles_anew(pipe):
  image = pictures(1)
  pipe.edit(image, regions.half(8, "left"), 1, settings=SETTINGS)
  before = len(pipe.programs)
  for mask in (regions.half(8, "top"), regions.box(8, 0, 0, 6, 4)):
    pipe.edit(image, mask, 2, settings=SETTINGS)
  assert len(pipe.programs) == before


GOOD = pictures(1)[0]
HALF = regions.half(8, "left")


@pytest.mark.parametrize(
  ("image", "mask", "more", "message"),
  [
    (GOOD[:6], HALF, {}, r"images are uint8 of shape \(6, 8, 1\).*crop"),
    (np.repeat(GOOD, 3, 2), HALF, {}, "with 3 channels"),
    (GOOD.astype(np.float32), HALF, {}, r"floats from .* expected -1 to 1"),
    (GOOD.astype(np.int32), HALF, {}, "images are int32"),
    (GOOD * np.float32(np.nan), HALF, {}, "nan"),
    (GOOD[0, :, 0], HALF, {}, r"shape \(8,\)"),
    (GOOD, np.zeros((8, 8), bool), {}, "selects no pixel"),
    (GOOD, np.ones((8, 8), bool), {}, "covers every token"),
    (GOOD, regions.box(8, 1, 1, 6, 6), {}, "covers every token"),
    (GOOD, np.zeros((4, 4), bool), {}, "mask"),
    (GOOD, np.full((8, 8), 0.5), {}, "mask"),
    (GOOD, HALF, {"labels": 10}, "not all classes"),
    (GOOD, HALF, {"num_images": 0}, "num_images is 0; expected 1 or more"),
    (GOOD, HALF, {"labels": [1, 2], "num_images": 3}, "2 labels, 3 num_images"),
  ],
)
def test_bad_edits_are_one_sentence(pipe, image, mask, more, message):
  with pytest.raises(ValueError, match=message):
    pipe.edit(image, mask, settings=SETTINGS, **more)
