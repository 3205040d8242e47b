"""Frames are shown while images are drawn, and change none of their bits."""

import dataclasses

import jax
import numpy as np
import pytest
import small

import marjax
from marjax.parallel.mesh import make_mesh
from marjax.pipeline import Pipeline
from marjax.requests import trajectory

GREY = trajectory.GREY


def pipe_of(experiment=small.EXPERIMENT, devices=1, **axes):
  mesh = make_mesh(devices=jax.devices()[:devices], **axes)
  params = small.params(model=experiment.model)
  codec = experiment.codec.init_params(jax.random.key(0))
  return Pipeline.of_experiment(experiment, params, mesh, codec_params=codec)


@pytest.fixture(scope="module")
def pipe():
  return pipe_of()


def settings_of(pipe, **changes):
  if pipe.card.model.backbone.is_sequential:
    del changes["num_ar_steps"]
  return pipe.settings(**changes)


def drawn(call):
  """What a call gives, and the frames that it showed before."""
  frames = []
  result = call(watch=frames.append)
  np.testing.assert_equal(result, call())
  return result, frames


@pytest.mark.parametrize(
  ("kind", "is_coded"),
  [("masked", False), ("raster", False), ("random", True), ("guided", False)],
)
@pytest.mark.parametrize(
  "axes",
  [
    {"devices": 1},
    pytest.param({"devices": 8, "tensor": 2}, marks=pytest.mark.slow),
  ],
  ids=["one device", "4 × 2"],
)
@pytest.mark.parametrize(
  ("steps", "buckets"), [(1, 1), (6, 1), (6, 6)], ids=str
)
def test_bits_are_those_that_nobody_watched(
  kind, is_coded, axes, steps, buckets
):
  pipe = pipe_of(small.of_kind(kind, is_coded), **axes)
  how = {"num_ar_steps": steps, "num_buckets": buckets, "guidance_scale": 2.0}
  settings = settings_of(pipe, **how)
  images, frames = drawn(
    lambda **watch: pipe.generate(range(8), 5, settings, **watch)
  )
  assert len(frames) == settings.num_ar_steps - 1
  whole = pipe.reveal(range(8), 5, settings)
  np.testing.assert_array_equal(whole.images, images)
  for frame, same, is_known in zip(
    frames, whole.frames[:-1], whole.is_known[:-1], strict=True
  ):
    np.testing.assert_array_equal(frame, same)
    np.testing.assert_array_equal(frame[is_known], images[is_known])
    assert (frame[~is_known] == GREY).all()


def test_frames_are_few_and_evenly_spaced(monkeypatch, pipe):
  monkeypatch.setattr(trajectory, "MOST_FRAMES", 3)
  _, frames = drawn(
    lambda **watch: pipe.generate(1, num_ar_steps=8, num_buckets=3, **watch)
  )
  shown = [(frame != GREY).any(-1).mean() * 16 for frame in frames]
  known = pipe.plan(num_ar_steps=8).known_after
  # Some cuts are there for the sake of the plan.
  assert {known[2], known[5]} <= {round(share) for share in shown}
  assert len(frames) <= 2 + 2


def test_each_batch_is_shown_by_itself(pipe):
  images, frames = drawn(
    lambda **watch: pipe.generate([1, 2, 3], 4, batch_size=2, **watch)
  )
  steps = pipe.settings().num_ar_steps - 1
  assert [len(frame) for frame in frames] == [2] * steps + [1] * steps
  whole = pipe.reveal([1, 2, 3], 4, batch_size=2)
  np.testing.assert_array_equal(whole.images, images)
  np.testing.assert_array_equal(whole.frames[0, :2], frames[0])
  np.testing.assert_array_equal(whole.frames[1, 2:], frames[steps + 1])


def test_a_frame_is_shown_before_more_is_drawn(pipe, monkeypatch):
  events, of = [], pipe.programs.of

  def noted(mesh, programs):
    def one(wanted, program):
      name = wanted.function.__name__
      return lambda *args: events.append(name) or program(*args)

    return [*map(one, programs, of(mesh, programs))]

  monkeypatch.setattr(pipe.programs, "of", noted)
  pipe.generate(1, watch=lambda _: events.append("shown"), num_buckets=1)
  steps = pipe.settings().num_ar_steps
  shown = ["run_segment", "finish", "_decode", "shown"] * (steps - 1)
  assert events == [
    *("_draw", "begin", *shown, "run_segment", "finish", "_decode")
  ]


def test_who_watches_may_end_it(pipe):
  def stop(frame):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    pipe.generate(1, watch=stop)


def test_an_edit_is_watched_too(pipe):
  image = pipe.generate(1, 2)[0]
  mask = marjax.regions.half(8, "left")
  edited, frames = drawn(
    lambda **watch: vars(pipe.edit(image, mask, 3, num_images=2, **watch))
  )
  assert frames
  kept = ~edited["mask"]
  for frame in frames:
    np.testing.assert_array_equal(frame[kept], edited["images"][kept])
  assert (frames[0] == GREY).any()
  assert (frames[0] == GREY).sum() > (frames[-1] == GREY).sum()


def test_watching_again_compiles_nothing(pipe):
  pipe.generate(1, watch=lambda frame: None)
  count = len(pipe.programs)
  pipe.reveal(2, seed=3, temperature=0.9)
  assert len(pipe.programs) == count


def test_who_watches_must_be_able_to(pipe):
  with pytest.raises(ValueError, match="expected a function that"):
    pipe.generate(1, watch=True)


def test_what_is_not_finite_is_not_shown(pipe):
  frames, wild = [], jax.tree.map(lambda leaf: 1e30 * leaf, pipe.params)
  pipe = dataclasses.replace(pipe, params=wild)
  with pytest.raises(ValueError, match="have NaN or infinity, though the para"):
    pipe.generate(1, watch=frames.append)
  assert frames == []
