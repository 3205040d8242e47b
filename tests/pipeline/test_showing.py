"""Images as people look at them: PIL, grids, files, settings by name."""

import inspect
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

import marjax
from marjax.generate.settings import Changes, Settings
from marjax.requests import batching
from tests import small

GREY = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1)
COLOUR = np.repeat(GREY, 3, 3)
SETTINGS = {"num_ar_steps": 2, "head": {"num_steps": 2}}


@pytest.fixture(scope="module")
def pipe():
  return small.pipe()


@pytest.mark.parametrize(("images", "mode"), [(GREY, "L"), (COLOUR, "RGB")])
def test_pil_has_the_same_pixels(images, mode):
  ours = marjax.to_pil(images)
  assert [image.mode for image in ours] == [mode] * 3
  np.testing.assert_array_equal(
    [np.asarray(image).reshape(8, 8, -1) for image in ours], images
  )
  assert np.array_equal(marjax.to_pil(images[1])[0], ours[1])


def test_one_image_may_be_rows_and_columns_alone():
  (one,) = marjax.to_pil(GREY[0, ..., 0])
  np.testing.assert_array_equal(np.asarray(one), GREY[0, ..., 0])


def test_a_grid_has_every_image_enlarged_but_never_mixed():
  page = np.asarray(marjax.grid(COLOUR, columns=2, scale=2))
  for image in COLOUR:
    large = np.repeat(np.repeat(image, 2, 0), 2, 1)
    windows = np.lib.stride_tricks.sliding_window_view(page, (16, 16), (0, 1))
    same = windows.transpose(0, 1, 3, 4, 2) == large
    assert same.all((2, 3, 4)).any()


@pytest.mark.parametrize("ending", ["png", "npy", "npz"])
def test_files(tmp_path, ending):
  path = tmp_path / f"a.{ending}"
  marjax.save(GREY, path, ["a", "b", "c"])
  if ending == "png":
    assert np.array_equal(Image.open(path), marjax.grid(GREY, "abc"))
  else:
    loaded = np.load(path)
    loaded = loaded["images"] if ending == "npz" else loaded
    np.testing.assert_array_equal(loaded, GREY)
  before = path.read_bytes()
  with pytest.raises(FileExistsError, match="overwrite=True in Python"):
    marjax.save(COLOUR, path)
  assert path.read_bytes() == before
  marjax.save(COLOUR, path, overwrite=True)
  assert path.read_bytes() != before


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: marjax.to_pil(GREY / 255),
      r"images are float64 .* expected uint8",
    ),
    (lambda: marjax.to_pil(GREY[:0]), r"shape \(0, 8, 8, 1\); expected"),
    (lambda: marjax.grid(np.zeros((2, 8, 8, 2), np.uint8)), "1 or 3 channels"),
    (lambda: marjax.grid(GREY, ["a"]), "labels has 1 entries; expected 3"),
    (lambda: marjax.grid(GREY, columns=0), "columns is 0; expected 1 or more"),
    (lambda: marjax.save(GREY, "a.gif"), "path is a.gif; expected a name that"),
    (lambda: marjax.save("a.png", "b.png"), "images of type str is no array"),
  ],
)
def test_what_cannot_be_shown(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_settings_may_be_given_by_name(pipe):
  named = pipe.settings(SETTINGS, guidance_scale=2, head={"num_steps": 3})
  assert (named.num_ar_steps, named.guidance_scale) == (2, 2.0)
  assert named.head.num_steps == 3
  more = {**SETTINGS, "num_ar_steps": 4}
  assert pipe.plan(SETTINGS, num_ar_steps=4) == pipe.plan(more)
  ours = pipe.generate([1], 3, SETTINGS, temperature=0.5)
  theirs = pipe.generate([1], 3, {**SETTINGS, "temperature": 0.5})
  np.testing.assert_array_equal(ours, theirs)
  assert (ours != pipe.generate([1], 3, SETTINGS)).any()


def test_names_of_settings_are_their_fields():
  fields = set(inspect.signature(Settings).parameters)
  assert set(Changes.__annotations__) == fields


def test_one_label_is_repeated(pipe):
  ours = pipe.generate(3, settings=SETTINGS, num_images=2)
  np.testing.assert_array_equal(ours, pipe.generate([3, 3], 0, SETTINGS))


def test_an_edit_takes_what_people_have(pipe):
  mask = marjax.regions.half(8, "left")

  def edited(image, **more):
    return pipe.edit(image, mask, [4], settings=SETTINGS, **more).images

  ours = edited(GREY[0])
  np.testing.assert_array_equal(ours, edited(GREY[0, ..., 0]))
  np.testing.assert_array_equal(ours, edited(marjax.to_pil(GREY)[0]))
  assert (ours != edited(GREY[0], temperature=0.1)).any()
  with pytest.raises(ValueError, match="the name of a file; expected pixels"):
    edited("a.png")


def test_types_are_told():
  assert files("marjax").joinpath("py.typed").is_file()


def test_a_few_images_on_a_cpu_take_one_segment(pipe):
  chosen = pipe.settings(num_ar_steps=8, num_buckets=None)
  assert batching.for_count(chosen, 4, pipe.mesh).num_buckets == 1
  assert batching.for_count(chosen, 5, pipe.mesh) == chosen
  asked = pipe.settings(num_ar_steps=8, num_buckets=3)
  assert batching.for_count(asked, 1, pipe.mesh) == asked


def test_few_are_the_images_that_many_are(pipe):
  quick = {**SETTINGS, "num_ar_steps": 4, "num_buckets": None}
  assert len(pipe.plan(quick).segments) > 1
  few = pipe.generate(range(3), 5, quick).astype(int)
  many = pipe.generate(range(6), 5, quick)[:3]
  # A pixel may round the other way: the arithmetic differs by 1e-6.
  assert np.abs(few - many).max() <= 1
