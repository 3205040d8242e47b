"""Models of codes as people meet them: from a codebook to a release."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from PIL import Image
from sentences import refuses

import marjax
from marjax.cli import main
from marjax.generate.draws import Draws
from marjax.head.noise import RecordedNoise
from marjax.latents.images import to_uint8
from marjax.model import ModelConfig
from marjax.pipeline import Pipeline
from marjax.release import loading
from marjax.requests.trajectory import GREY
from marjax.tokens import regions
from marjax.train import codebook, loop
from marjax.train.gradients import draw_for, loss_and_gradient

IMAGES = to_uint8(small.images(2)["image"])
CODES = 12


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A raster model that was trained for two steps; its codebook is gone."""
  folder = tmp_path_factory.mktemp("codes")
  run = small.of_kind("raster", is_coded=True)
  data = dataclasses.replace(
    run.data, num_examples=40, autoencoder=str(folder / "book")
  )
  training = dataclasses.replace(
    run.training, num_steps=2, checkpoint_every=2, sample_every=0
  )
  codebook.fit(run.codec, data, folder / "book")
  run = dataclasses.replace(run, data=data, training=training)
  assert int(loop.train(run, folder / "run").step) == 2
  shutil.rmtree(folder / "book")
  return folder / "run"


@pytest.fixture(scope="module")
def trained(workdir):
  return marjax.load(workdir, small.one_device())


@pytest.fixture(
  scope="module",
  params=["masked", pytest.param("random", marks=pytest.mark.slow), "guided"],
)
def editable(request):
  run = small.of_kind(request.param, is_coded=True)
  codes = {"codes": jax.random.normal(jax.random.key(0), (CODES, 4))}
  return Pipeline.of_experiment(
    run, small.params(model=run.model), small.one_device(), codec_params=codes
  )


def test_latents_and_tokens_are_ids(trained):
  ids, tokens = trained.encode(IMAGES), trained.tokenise(IMAGES)
  drawn = trained.latents([0, 1])
  for values, shape in (
    (ids, (2, 4, 4)),
    (tokens, (2, 16)),
    (drawn, (2, 4, 4)),
  ):
    assert (values.shape, values.dtype) == (shape, np.int32)
    assert values.min() >= 0
    assert values.max() < CODES
  np.testing.assert_array_equal(tokens, ids.reshape(2, 16))
  again = trained.encode(trained.decode(ids))
  np.testing.assert_array_equal(again, ids)
  np.testing.assert_array_equal(trained.generate([0, 1]), trained.decode(drawn))


def test_one_code_is_the_likeliest(trained):
  def drawn(**settings):
    return trained.latents([0, 1], settings=settings)

  coldest = drawn(temperature=0.0)
  np.testing.assert_array_equal(drawn(head={"top_k": 1}), coldest)
  np.testing.assert_array_equal(drawn(head={"top_p": 1e-6}), coldest)
  assert (drawn() != coldest).any()


@pytest.mark.parametrize("is_started", [False, True])
def test_a_raster_model_goes_on(trained, is_started):
  mask = np.zeros((8, 8), bool)
  mask[2:, :] = True
  mask[:2, 4:] = is_started
  edited = trained.edit(IMAGES, mask, [0, 1])
  _check_kept(trained, edited, mask)


def test_ids_that_are_kept_stay(editable):
  mask = regions.scattered(8, 2, 0.5, seed=1)
  edited = editable.edit(IMAGES, mask, [0, 1])
  _check_kept(editable, edited, mask)


def _check_kept(pipe, edited, mask):
  before, is_drawn = pipe.encode(IMAGES), mask[::2, ::2]
  assert edited.latents.dtype == np.int32
  kept = edited.latents[:, ~is_drawn]
  np.testing.assert_array_equal(kept, before[:, ~is_drawn])
  assert (edited.latents != before).any()
  np.testing.assert_array_equal(edited.images, pipe.decode(edited.latents))


def test_unknown_tokens_are_grey(editable):
  shown = editable.reveal([0, 1])
  # A patch of pixels depends on its own code alone.
  known = np.broadcast_to(shown.images, shown.frames.shape)
  is_known = shown.is_known[..., None]
  np.testing.assert_array_equal(shown.frames, np.where(is_known, known, GREY))
  assert not shown.is_known[0].all()
  assert shown.is_known[-1].all()


def test_a_release_draws_the_same(trained, workdir, tmp_path):
  loading.export(workdir, tmp_path / "shared")
  again = marjax.load(tmp_path / "shared", small.one_device())
  assert again.card.codec == small.CODEBOOK
  labels = [0, 1, -1]
  np.testing.assert_array_equal(
    again.generate(labels, seed=3), trained.generate(labels, seed=3)
  )


def test_the_start_is_all_that_a_replay_needs(trained):
  draws = trained.draws(seed=4, num_images=2)
  shape = trained.card.model.head.noise_shape
  assert shape == (CODES,)
  recorded = Draws(draws.order, RecordedNoise(draws.noise.initial(shape)))
  np.testing.assert_array_equal(
    trained.latents([0, 1], draws=recorded), trained.latents([0, 1], seed=4)
  )


def test_a_head_of_several_evaluations_needs_more():
  run = small.EXPERIMENT
  pipe = Pipeline.of_experiment(run, small.params(), small.one_device())
  draws = pipe.draws(seed=4, num_images=1)
  start = RecordedNoise(draws.noise.initial((4,)))
  refuses(
    lambda: pipe.generate([0], draws=Draws(draws.order, start)),
    "recorded without steps, and this head takes noise at each evaluation",
  )


def test_a_step_of_training_can_be_replayed(trained):
  run = small.of_kind("guided", is_coded=True)
  params = small.params(model=run.model)
  tokens, drawn = draw_for(run, small.images(4), 0, trained.codec_params)
  recorded = dataclasses.replace(
    drawn,
    backbone=jax.tree.map(jnp.asarray, drawn.backbone),
    head=run.model.head.draw(drawn.head),
  )
  assert jax.tree.leaves(recorded.head) == []

  @jax.jit
  def losses(draws):
    return loss_and_gradient(run, params, tokens, draws, 0, deterministic=True)[
      0
    ]

  ours, theirs = losses(recorded), losses(drawn)
  assert ours.keys() == {"loss", "cross_entropy"}
  np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-6)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda pipe: pipe.edit(IMAGES, regions.half(8, "top"), 0),
      "raster order only.*expected a mask that, read like a page",
    ),
    (
      lambda pipe: pipe.generate([0], settings={"num_ar_steps": 4}),
      "num_ar_steps is 4; expected 16 or none",
    ),
    (
      lambda pipe: pipe.generate([0], settings={"head": {"top_p": 1.5}}),
      "head.top_p is 1.5; expected more than 0, and at most 1",
    ),
    (
      lambda pipe: pipe.generate([0], settings={"head": {"num_steps": 9}}),
      "head.num_steps is 9; expected 1.",
    ),
    (
      lambda pipe: pipe.generate([0], settings={"head": {"start": 950}}),
      "head.start is not a known key.*Known: num_steps, top_k, top_p",
    ),
    (
      lambda pipe: pipe.decode(np.zeros((1, 4, 4), np.float32)),
      r"codes have shape .* expected integers \[N, 4, 4\] from 0 to 11",
    ),
    (
      lambda pipe: pipe.decode(np.zeros((1, 3, 4), int)),
      r"shape \(1, 3, 4\) .* expected integers \[N, 4, 4\] from",
    ),
    (
      lambda pipe: pipe.decode(np.full((1, 4, 4), CODES)),
      "codes go from 12 to 12; expected integers",
    ),
  ],
)
def test_what_it_cannot_do_is_one_sentence(trained, call, message):
  refuses(lambda: call(trained), message)


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (
      ["edit", "--image", "a.png", "--mask", "top"],
      "expected a mask that, read like a page, covers all tokens from one on",
    ),
    (
      ["generate", "--labels", "0", "--num_ar_steps", "4"],
      "num_ar_steps is 4; expected 16 or none",
    ),
    (
      ["generate", "--labels", "0", "--head.top_p", "1.5"],
      "head.top_p is 1.5; expected more than 0, and at most 1.",
    ),
    (
      ["generate", "--labels", "0", "--head.sampler", "ddim"],
      "head.sampler is not a known key; Known: num_steps, top_k, top_p",
    ),
  ],
)
def test_the_commands_say_so_too(
  workdir, tmp_path, monkeypatch, capsys, argv, message
):
  monkeypatch.chdir(tmp_path)
  Image.fromarray(IMAGES[0, ..., 0]).save("a.png")
  rest = ["--checkpoint", str(workdir), "--out", "b.npy"]
  assert main.main([*argv, *rest]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert message in line
  assert line.endswith(".")
  assert not (tmp_path / "b.npy").exists()


def test_the_commands_draw(workdir, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Image.fromarray(IMAGES[0, ..., 0]).save("a.png")
  rest = ["--checkpoint", str(workdir), "--out"]
  edit = ["edit", "--image", "a.png", "--mask", "bottom", "--labels", "1"]
  assert main.main([*edit, *rest, "b.npz"]) == 0
  with np.load("b.npz") as made:
    assert made["latents"].dtype == np.int32
    np.testing.assert_array_equal(made["mask"][0], regions.half(8, "bottom"))
  narrowed = ["--head.top_k", "5", "--head.top_p", "0.9"]
  generate = ["generate", "--labels", "0,none", *narrowed]
  assert main.main([*generate, *rest, "c.npy"]) == 0
  assert np.load("c.npy").shape == (2, 8, 8, 1)


def test_parts_that_do_not_fit_are_one_sentence():
  floats = small.EXPERIMENT
  codes = small.of_kind("random", is_coded=True)
  refuses(
    lambda: ModelConfig(codes.model.backbone, floats.model.head),
    "takes tokens that are codes 0 .. 11 and the diffusion head draws floats",
  )
  refuses(
    lambda: ModelConfig(floats.model.backbone, codes.model.head),
    "takes tokens that are floats .* the categorical head draws codes 0 .. 11",
  )
  for run, other, words in (
    (floats, codes, "pixels codec makes 16 tokens that are floats"),
    (codes, floats, "codebook codec makes 16 tokens that are codes 0 .. 11"),
  ):
    refuses(
      lambda run=run, other=other: dataclasses.replace(other, codec=run.codec),
      f"the {words}.* codes go with a backbone's num_codes and a categorical",
    )
