"""Whole generations against the published program, with its draws replayed.

Tolerances: relative to the largest value; the published float32 program is
itself 2e-6 off float64 with strided spacings and 2e-5 with 100 steps.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import small

import marjax
from marjax.generate.draws import Draws
from marjax.generate.reveal import numbers_for, static_for
from marjax.generate.settings import Settings
from marjax.head.noise import RecordedNoise
from marjax.head.reverse import ReverseSettings
from parity.published import TINY, assert_close, reveal_order

RUNS = {
  "model_stepsddim25_iter4_cfg1_temp1": ("stride", 25, 4, 1.0, 1.0, 1e-5),
  "model_stepsddim25_iter4_cfg3linear_temp0.95": (
    *("stride", 25, 4, 3.0, 0.95),
    1e-5,
  ),
  "model_stepsddim10_iter16_cfg1_temp0.9": ("stride", 10, 16, 1.0, 0.9, 1e-5),
  "ema_steps100_iter4_cfg3linear_temp1": ("even", 100, 4, 3.0, 1.0, 2e-4),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("num_buckets", [1, 3])
def test_whole_sample(golden, model_params, ema_params, name, num_buckets):
  theirs = golden(f"sample_{name}.npz")
  spacing, steps, ar_steps, scale, temperature, tolerance = RUNS[name]
  settings = Settings(
    num_ar_steps=ar_steps,
    guidance_scale=scale,
    temperature=temperature,
    num_buckets=num_buckets,
    head=ReverseSettings(num_steps=steps, spacing=spacing),
  ).for_model(TINY)
  static = static_for(TINY, settings)
  draws = Draws(
    reveal_order(theirs["orders"]),
    RecordedNoise(
      jnp.asarray(theirs["dense_init_noise"]),
      jnp.moveaxis(jnp.asarray(theirs["dense_step_noise"]), 0, -2),
    ),
  )
  numbers = numbers_for(static.plan, settings)
  if scale != 1.0:
    np.testing.assert_allclose(numbers.scales, theirs["cfg_iter"], rtol=1e-6)
  params = ema_params if name.startswith("ema") else model_params
  labels = jnp.asarray(theirs["labels"], jnp.int32)
  after = small.tokens_after(static, params, labels, draws, numbers)
  assert_close(after[-1], theirs["tokens_final"], tolerance)
  assert_close(np.stack(after), theirs["tokens_after"], tolerance)


def test_a_converted_pipeline_draws_the_published_image(golden, converted):
  pytest.importorskip("torch")
  theirs = golden("sample_model_stepsddim25_iter4_cfg3linear_temp0.95.npz")
  pipe = marjax.load(converted("raw"), small.one_device())
  latents = pipe.latents(
    theirs["labels"],
    settings=Settings(
      num_ar_steps=4,
      guidance_scale=3.0,
      temperature=0.95,
      head=ReverseSettings(num_steps=25, spacing="stride"),
    ),
    draws=Draws(
      reveal_order(theirs["orders"]),
      RecordedNoise(
        jnp.asarray(theirs["dense_init_noise"]),
        jnp.moveaxis(jnp.asarray(theirs["dense_step_noise"]), 0, -2),
      ),
    ),
    batch_size=2,
  )
  assert_close(latents.transpose(0, 3, 1, 2), theirs["img_final"], 1e-5)
