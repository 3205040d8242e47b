"""What a benchmark says is needed is counted without padding, and no more."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from benchmarks import generation, needed, sizes, timing, training
from marjax import keys
from marjax.generate import reveal
from marjax.generate.draws import draw_batch
from marjax.generate.settings import Settings
from marjax.tokens.masking import MaskConfig
from marjax.train import flops

# Of MAR-L: TFLOP of one guided image in 64 × 100 steps and the head's share, if
# the last decoder block had a query at every position; and of training.
GENERATION_TFLOP, HEAD_SHARE = 33.0, 0.22
TRAINING_TFLOP = 0.9


def static_of(**changes):
  settings = small.EXPERIMENT.sampling.changed(changes)
  return reveal.static_for(small.MODEL, settings.for_model(small.MODEL))


def inputs_of(static, batch=2):
  shaped = jax.ShapeDtypeStruct
  return generation.Inputs(
    needed.abstract_params(static.config),
    shaped((batch,), "int32"),
    jax.eval_shape(
      lambda: draw_batch(keys.root(0), jnp.arange(batch), small.MODEL.backbone)
    ),
    shaped((static.plan.num_ar_steps,), "float32"),
    shaped((), "float32"),
    [
      needed.walk_of(static, index)
      for index in range(len(static.plan.segments))
    ],
  )


def test_a_plan_without_padding_does_what_is_needed():
  settings = {
    "num_ar_steps": 4,
    "guidance_scale": 2.0,
    "head": {"num_steps": 4, "final_num_steps": 8},
  }
  exact = static_of(num_buckets=4, **settings)
  assert all(len(part.num_known) == 1 for part in exact.plan.segments)
  done = generation.count_flops(exact, inputs_of(exact))
  assert needed.of_generation(exact, 2)[0] == done


def test_padding_is_done_and_not_needed():
  padded = static_of(num_buckets=1)
  total, head = needed.of_generation(padded, 2)
  assert 0 < head < total
  assert generation.count_flops(padded, inputs_of(padded)) > 1.2 * total


@pytest.mark.slow
def test_published_sizes_need_the_published_arithmetic():
  experiment = sizes.experiment("large")
  static = reveal.static_for(experiment.model, experiment.sampling)
  total, head = needed.of_generation(static, 1)
  assert 0.94 * GENERATION_TFLOP < total / 1e12 < GENERATION_TFLOP
  assert head / total == pytest.approx(HEAD_SHARE, abs=0.02)


@pytest.mark.slow
def test_training_needs_what_is_known_of_it():
  total, head = needed.of_training(sizes.experiment("large").model, 1)
  assert total / 1e12 == pytest.approx(TRAINING_TFLOP, rel=0.05)
  assert 0.35 < head / total < 0.5


def forward_flops(model, batch):
  experiment = dataclasses.replace(
    small.EXPERIMENT,
    model=model,
    training=dataclasses.replace(small.EXPERIMENT.training, batch_size=batch),
  )
  params = needed.abstract_params(model)
  random = training.random_batch(experiment)
  return 3 * flops.count(training.forward(experiment), params, random)


def with_masks(masking):
  backbone = dataclasses.replace(small.MODEL.backbone, masking=masking)
  return dataclasses.replace(small.MODEL, backbone=backbone)


@pytest.mark.slow
def test_training_counts_each_number_of_known_tokens_by_itself():
  # No ratio is a whole token below 1, so every image knows none; but for the
  # buffer slots of the last block, whose z nobody needs, there is no padding.
  exact = MaskConfig(lowest=0.95, std=0.01)
  model = with_masks(exact)
  share = needed.of_training(model, 4)[0] / forward_flops(model, 4)
  assert 0.96 < share <= 1.0
  # Strata know different numbers, so there is some.
  masking = MaskConfig(num_strata=4, lowest=0.1, std=0.5)
  model = with_masks(masking)
  assert 0.75 < needed.of_training(model, 8)[0] / forward_flops(model, 8) < 0.95


def test_the_loop_without_its_head_is_the_transformer():
  static = static_of(guidance_scale=2.0)
  inputs = inputs_of(static)
  alone = generation.without_head(static)
  assert alone.plan == static.plan
  whole = generation.count_flops(static, inputs)
  _, fixed = jax.eval_shape(
    lambda params: needed._begun(static, params, 2), inputs.params
  )
  shape = (2, 16 + static.plan.widest, 32)
  z = jax.ShapeDtypeStruct(shape, "float32")
  tokens = jax.ShapeDtypeStruct((*shape[:2], 4), "float32")
  head = sum(
    flops.count(
      functools.partial(generation._draw_segment, static, index),
      inputs.params,
      tokens,
      z,
      z,
      fixed,
      inputs.scales,
      inputs.temperature,
    )
    for index in range(len(static.plan.segments))
  )
  narrow_head = sum(
    len(s.num_known) * 2 * s.head_width for s in static.plan.segments
  )
  # The control's head: z, one block of 64, two passes over one input; and one
  # time for all tokens of a step.
  per_pass = 2 * (32 + 3 * 64 + 2 * 64 + 2 * 64 + 8) * 64
  per_step = 2 * (256 + 64) * 64
  transformer = generation.count_flops(alone, inputs_of(alone))
  transformer -= 2 * narrow_head * per_pass + narrow_head * 2 * 4 * 64
  transformer -= static.plan.num_ar_steps * per_step
  assert transformer + head == whole


def test_the_higher_floor_counts(monkeypatch):
  monkeypatch.setattr(timing, "matmul_tflops", lambda: 2.0)
  monkeypatch.setattr(timing, "copy_gigabytes_per_second", lambda: 10.0)
  work = timing.Work(10**12, 8 * 10**11, 10**11, 10**9)
  found = timing.floors(1.0, work, num_devices=2)
  assert found["floor_matmul_seconds"] == pytest.approx(0.2)
  assert found["floor_weight_seconds"] == pytest.approx(0.1)
  assert found["share_of_floor"] == pytest.approx(0.2)
  heavy = dataclasses.replace(work, weight_bytes=5 * 10**9)
  assert timing.floors(1.0, heavy)["share_of_floor"] == pytest.approx(0.5)


def test_the_machine_is_measured_once(monkeypatch):
  monkeypatch.setattr(timing, "_MACHINE_SECONDS", 1e-3)
  assert 0 < timing.matmul_tflops() < 1e4
  assert timing.matmul_tflops() is timing.matmul_tflops()
  assert 0 < timing.copy_gigabytes_per_second() < 1e5


def test_cached_latents_are_what_big_sizes_train_on():
  experiment = sizes.experiment("base", 8, remat="none", data="latents")
  assert experiment.model.backbone.remat == "none"
  batch = training.random_batch(experiment)
  assert batch["moments"].shape == (8, 16, 16, 32)
  assert batch["moments"].dtype == np.float16
  assert "image" not in batch
  loss = jax.eval_shape(
    training.forward(experiment),
    needed.abstract_params(experiment.model),
    batch,
  )
  assert loss.shape == ()
  assert loss.dtype == jnp.float32
  with pytest.raises(ValueError, match="expected one of base, large"):
    sizes.experiment("tiny", data="latents")


def test_settings_of_a_size_stay_unless_asked():
  assert sizes.experiment("tiny").model.backbone.remat == "none"
  assert sizes.experiment("base").model.backbone.remat == "full"
  assert sizes.experiment("base").sampling == Settings(
    guidance_scale=2.9
  ).for_model(sizes.experiment("base").model)
