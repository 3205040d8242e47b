"""What Python's interface answers to wrong arguments: one sentence each.

A table for each entry. What is right but unusual is accepted.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from PIL import Image
from sentences import refuses

import marjax
from marjax.generate.draws import Draws
from marjax.head.noise import KeyedNoise, RecordedNoise
from marjax.parallel.mesh import make_mesh
from marjax.pipeline import Pipeline
from marjax.release.card import Card
from marjax.tokens import regions

SETTINGS = marjax.Settings(
  num_ar_steps=2,
  num_buckets=1,
  head=marjax.ReverseSettings(num_steps=3, start=900),
)
COLD = dataclasses.replace(SETTINGS, temperature=0.0)
NAN, SEEDS = float("nan"), r"expected an integer in 0 \.\. 2\*\*32 - 1"


@pytest.fixture(scope="module")
def pipe():
  return small.pipe()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"name_or_dir": None}, "name_or_dir is None; expected a path or a name"),
    ({"name_or_dir": 3}, "name_or_dir is 3; expected a path"),
    ({"name_or_dir": ""}, "name_or_dir is ''; expected a path"),
    ({"name_or_dir": ["x"]}, "name_or_dir is .*; expected a path"),
    ({"mesh": "dp"}, "mesh is of type str; expected a mesh with the axes data"),
    ({"mesh": jax.devices()}, "mesh is of type list"),
    ({"dtype": "float16"}, "dtype is 'float16'; expected one of 'float32'"),
    ({"dtype": jnp.bfloat16}, "dtype is .*; expected one of 'float32'"),
    ({"codec_dtype": "half"}, "codec_dtype is 'half'"),
    ({"verify": "no"}, "verify is 'no'; expected True or False"),
    ({"seed": 1}, "load: got an unexpected .* its arguments are name_or_dir"),
  ],
)
def test_load(arguments, message, tmp_path):
  refuses(
    lambda: marjax.load(**{"name_or_dir": tmp_path, **arguments}), message
  )


def test_load_needs_a_mesh_of_our_axes(tmp_path):
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("x",))
  refuses(
    lambda: marjax.load(tmp_path, mesh), r"axes \('x',\); expected a mesh"
  )
  refuses(lambda: Pipeline(small.card(), {}, mesh), r"axes \('x',\); expected")


WRONG_SHARED = [
  ({"seed": None}, f"seed is None; {SEEDS}"),
  ({"seed": 1.5}, rf"seed is 1\.5 \(float\); {SEEDS}"),
  ({"seed": "3"}, rf"seed is '3'; {SEEDS}"),
  ({"seed": True}, r"seed is True \(bool\)"),
  ({"seed": -1}, f"seed is -1; {SEEDS}"),
  ({"seed": 2**70}, f"seed is {2**70}; {SEEDS}"),
  ({"seed": np.arange(3)}, r"seed is int64 \[3\]"),
  ({"seed": jax.random.key(0)}, "seed is .*; expected an integer"),
  ({"settings": {"guidance_scale": "3"}}, "guidance_scale is '3'; expected a"),
  ({"settings": 3}, "settings is 3; expected changes"),
  ({"settings": "slow"}, "there is no preset 'slow'; small has: quick"),
  ({"settings": marjax.Settings}, "settings is .*; expected changes"),
  ({"num_images": 2.0}, "num_images is 2.0 .*; expected an integer, 1 or more"),
  ({"num_images": True}, "num_images is True"),
  ({"num_images": 0}, "num_images is 0; expected 1 or more"),
  ({"batch_size": "2"}, "batch_size is '2'; expected an integer, 1 or more"),
  ({"batch_size": 1.5}, "batch_size is 1.5"),
  ({"batch_size": -1}, "batch_size is -1; expected 1 or more"),
  ({"progress": "no"}, "progress is 'no'; expected True or False"),
  ({"guidance": 3}, "settings.guidance is not a known .* guidance_scale"),
]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    *WRONG_SHARED,
    ({"labels": {0, 1}}, r"labels is \{0, 1\}; expected a list"),
    ({"labels": b"cat"}, "labels is b'cat'; expected a list"),
    ({"labels": [1.0]}, "are not all classes of this model"),
    ({"labels": [True]}, "are not all classes"),
    ({"labels": [NAN]}, "are not all classes"),
    ({"labels": ["cat"]}, "label 'cat' is a name, but no names are known"),
    ({"labels": np.zeros((2, 2), int)}, r"labels has shape \(2, 2\)"),
    ({"draws": 3}, "draws is 3; expected `Draws`"),
    (
      {"settings": {"head": {"steps": 3}}},
      "head.steps is not a known",
    ),
    ({"settings": {"guidance": 3}}, "did you mean guidance_scale"),
  ],
)
def test_generate(pipe, arguments, message):
  asked = {"labels": [0], "settings": SETTINGS, **arguments}
  refuses(lambda: pipe.generate(**asked), message)


def recorded(images=1, tokens=16, dim=4, steps=3, value=0.0) -> RecordedNoise:
  start = jnp.full((images, tokens, dim), value)
  return RecordedNoise(start, jnp.zeros((images, tokens, steps, dim)))


ORDER = jnp.arange(16)[None]


@pytest.mark.parametrize(
  ("order", "noise", "message"),
  [
    (jnp.arange(9)[None], recorded(tokens=9), r"order is int32 \[1, 9\]; exp"),
    (jnp.zeros((1, 16), int), recorded(), r"\[1, 16\] with each of 0 \.\. 15"),
    (ORDER.astype(float), recorded(), r"draws.order is float32 \[1, 16\]"),
    (ORDER[0], recorded(), "recorded for 16 images; expected 1"),
    (
      ORDER,
      recorded(images=2),
      r"noise.start has shape \(2, 16, 4\); expected",
    ),
    (ORDER, recorded(dim=5), r"noise.start has shape \(1, 16, 5\); expected"),
    (ORDER, recorded(steps=2), "noise was recorded for 2 steps; expected 3"),
    (ORDER, recorded(value=NAN), r"noise.start\[0, 0, 0\] is nan; expected"),
    (ORDER, None, "draws is .*; expected `Draws`"),
    (ORDER, KeyedNoise(jnp.zeros((1, 16, 2), jnp.uint32)), "of the old style"),
    (
      ORDER,
      KeyedNoise(jax.random.split(jax.random.key(0), (1, 9))),
      r"noise.row_keys has shape \(1, 9\); expected \(1, 16\)",
    ),
  ],
)
def test_draws_of_another_model(pipe, order, noise, message):
  draws = Draws(order, noise)
  refuses(lambda: pipe.generate([0], settings=SETTINGS, draws=draws), message)


GOOD = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
FLOATS = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8, 1)


def with_value(value) -> np.ndarray:
  array = FLOATS.copy()
  array[2, 3, 0] = value
  return array


WRONG_IMAGES = [
  (with_value(NAN), r"images\[2, 3, 0\] is nan; expected uint8, or floats"),
  (with_value(-np.inf), r"images\[2, 3, 0\] is -inf; expected"),
  (GOOD.astype(np.float32), "floats from .* to .*; expected -1 to 1, or uint8"),
  (GOOD.astype(np.int32), "images are int32 .* convert them first"),
  (GOOD.astype(np.uint16), "images are uint16"),
  (GOOD > 127, "images are bool"),
  (FLOATS * 1j, "images of type ndarray is no array of booleans or numbers"),
  (np.moveaxis(GOOD, -1, 0), r"moveaxis\(images, -3, -1\) puts the channels"),
  (GOOD[0, :, 0], r"images are uint8 of shape \(8,\); expected"),
  (GOOD[None, None], r"of shape \(1, 1, 8, 8, 1\); expected"),
  (GOOD[:0], r"of shape \(0, 8, 1\); expected"),
  (np.repeat(GOOD, 3, 2), "with 3 channels; .* convert them first"),
  (np.repeat(GOOD, 2, 0), r"crop or resize them first, as .*crop\(image, 8\)"),
  (Image.new("RGB", (8, 8)), r'mode RGB; expected L, as image.convert\("L"\)'),
  ([Image.new("RGBA", (8, 8))], "mode RGBA; expected L"),
  (None, "images of type NoneType is no array"),
  ("photo.png", "images are 'photo.png', the name of a file; expected pixels"),
  ([[1, 2], [3]], "images of type list is no array"),
  ({"image": GOOD}, "images of type dict is no array"),
]


@pytest.mark.parametrize(("images", "message"), WRONG_IMAGES)
@pytest.mark.parametrize("entry", ["encode", "tokenise", "reconstruct", "edit"])
def test_images(pipe, entry, images, message):
  def call():
    if entry == "edit":
      return pipe.edit(images, HALF, settings=SETTINGS)
    return getattr(pipe, entry)(images)

  refuses(call, message)


def test_images_inside_jit(pipe):
  refuses(
    lambda: jax.jit(pipe.encode)(FLOATS),
    "images is traced by a transformation such as jax.jit; call this outside",
  )


@pytest.mark.parametrize("images", [(FLOATS + 1) / 2, np.zeros_like(FLOATS)])
def test_floats_that_may_be_scaled_to_one_are_warned_of(pipe, images):
  with pytest.warns(UserWarning, match=r"if 0 is black in them, .* uint8"):
    latents = pipe.encode(images)
  np.testing.assert_array_equal(latents[0], images)


@pytest.mark.parametrize(
  "images",
  [
    GOOD,
    jnp.asarray(GOOD),
    GOOD[None],
    [GOOD],
    Image.fromarray(GOOD[..., 0]),
    [Image.fromarray(GOOD[..., 0])],
  ],
)
def test_images_as_people_have_them(pipe, images):
  expected = GOOD.astype(np.float32) / 127.5 - 1
  np.testing.assert_allclose(pipe.encode(images)[0], expected, atol=1e-6)


HALF = regions.half(8, "left")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    *WRONG_SHARED,
    ({"mask": np.full((8, 8), 0.5)}, r"mask\[0, 0\] is 0.5; expected booleans"),
    ({"mask": np.full((8, 8), NAN)}, r"mask\[0, 0\] is nan; expected"),
    ({"mask": np.zeros((8, 8), bool)}, "selects no pixel"),
    ({"mask": np.ones((8, 8), bool)}, "covers every token"),
    ({"mask": HALF[:4]}, r"mask has shape \(4, 8\); expected \(8, 8\)"),
    ({"mask": "left"}, r"mask of type str is no array.* marjax\.regions\.half"),
    ({"mask": None}, "mask of type NoneType is no array"),
    ({"mask": HALF.astype(object)}, "mask of type ndarray is no array"),
    ({"labels": 10}, "are not all classes"),
    ({"labels": 1.5}, "are not all classes"),
    ({"labels": [0, 1, 2], "num_images": 2}, "3 labels, 2 num_images"),
    ({"keep_pixels": None}, "keep_pixels is None; expected True or False"),
  ],
)
def test_edit(pipe, arguments, message):
  asked = {"image": GOOD, "mask": HALF, "settings": SETTINGS, **arguments}
  refuses(lambda: pipe.edit(**asked), message)


@pytest.mark.parametrize(
  ("latents", "message"),
  [
    (FLOATS, r"latents have shape \(8, 8, 1\) .* expected floats \[N, 8, 8, 1"),
    (FLOATS[None, :, :, :0], "latents have shape"),
    (np.repeat(FLOATS[None], 4, 3), r"latents have shape \(1, 8, 8, 4\)"),
    (FLOATS[None, :5], r"\(1, 5, 8, 1\) .* expected floats \[N, 8, 8, 1\]"),
    (GOOD[None], "type uint8; expected floats"),
    (with_value(NAN)[None], r"latents\[0, 2, 3, 0\] is nan; expected"),
    ("latents", "latents of type str is no array"),
    (None, "latents of type NoneType is no array"),
  ],
)
def test_decode(pipe, latents, message):
  refuses(lambda: pipe.decode(latents), message)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda p: p.decode(FLOATS[None], 0),
      "batch_size is 0; expected 1 or more",
    ),
    (
      lambda p: p.encode(FLOATS, "8"),
      "batch_size is '8'; expected an integ",
    ),
    (lambda p: p.draws(None, 2), f"seed is None; {SEEDS}"),
    (lambda p: p.draws(0, 0), "num_images is 0; expected 1 or more"),
    (lambda p: p.draws(0, 2.5), "num_images is 2.5"),
    (lambda p: p.draws(0), "draws: missing a required argument: 'num_images'"),
    (lambda p: p.plan([3]), "settings is .*; expected changes"),
    (lambda p: p.plan("slow"), "there is no preset 'slow'"),
    (lambda p: p.settings(3.5), "settings is 3.5"),
  ],
)
def test_the_other_entries(pipe, call, message):
  refuses(lambda: call(pipe), message)


def test_numbers_of_numpy_and_jax_are_numbers(pipe):
  ours = pipe.generate([1, 2], 3, SETTINGS)
  theirs = pipe.generate(
    np.array([1, 2], np.int64),
    np.uint32(3),
    SETTINGS,
    num_images=np.int8(2),
    batch_size=jnp.asarray(2),
  )
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda p: {"backbone": p["backbone"]},
      "head/.* is not there; expected sh",
    ),
    (
      lambda p: {**p, "more": jnp.ones(2)},
      r"more is of shape \(2,\); expected no",
    ),
    (
      lambda p: jax.tree.map(lambda a: a[None], p),
      "is of shape .*; expected sha",
    ),
    (lambda p: {}, "is not there; expected shape"),
  ],
)
def test_parameters_of_another_model(pipe, change, message):
  other = dataclasses.replace(pipe, params=change(pipe.params))
  message = f"the parameters are not those of small: .*{message}"
  refuses(lambda: other.generate([0], settings=SETTINGS), message)


def test_parameters_of_another_autoencoder():
  params = small.codec_params()
  codec = dataclasses.replace(small.CODEC, base_width=64)
  pipe = Pipeline(Card("KL", codec), {}, make_mesh(), params)
  refuses(lambda: pipe.encode(np.zeros((8, 8, 3), np.uint8)), "its autoencoder")


def test_nan_is_never_shown(pipe):
  nan = jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      leaf.at[0].set(NAN) if path[-1].key == "mask_token" else leaf
    ),
    pipe.params,
  )
  damaged = dataclasses.replace(pipe, params=nan)
  refuses(
    lambda: damaged.generate([0], settings=SETTINGS),
    "has NaN or infinity in backbone/mask_token",
  )
  huge = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf * 1e38 if path[-2].key == "final_linear" else leaf,
    pipe.params,
  )
  overflowing = dataclasses.replace(pipe, params=huge)
  refuses(
    lambda: overflowing.generate([0, 1], settings=SETTINGS),
    r"2 generated images, the first of them image 0, .* guidance_scale 1 ",
  )


def test_an_autoencoder_that_overflows_is_never_shown():
  card = Card("KL", small.CODEC)
  params = jax.tree.map(lambda a: a + jnp.inf, small.codec_params())
  pipe = Pipeline(card, {}, small.one_device(), params)
  shape = (1, *small.CODEC.latent_shape)
  refuses(lambda: pipe.decode(np.zeros(shape)), "the decoded images have NaN")
  images = np.zeros((1, 8, 8, 3), np.uint8)
  refuses(lambda: pipe.encode(images), "the encoded latents have NaN")


def test_objects_show_themselves_in_one_line(pipe):
  shown = pipe.reveal([1], settings=COLD)
  edited = pipe.edit(GOOD, HALF, settings=COLD)
  for thing, words in (
    (pipe, r"Pipeline\('small': 47,208 parameters, 16 tokens, images of 8 x 8"),
    (shown, r"Trajectory\(images uint8 \[1, 8, 8, 1\], 2 steps\)"),
    (edited, r"Edited\(images uint8 \[1, 8, 8, 1\], 50% drawn anew\)"),
    (pipe.draws(0, 2), r"Draws\(order int32 \[2, 16\], KeyedNoise\)"),
    (pipe.plan(), r"Plan\(16 tokens in 6 steps, 2 segments\)"),
  ):
    assert re.match(words, repr(thing)), repr(thing)
    assert len(repr(thing)) < 200
    assert "\n" not in repr(thing)
