"""What the page answers without a browser: pictures, code, links, errors."""

import contextlib
import dataclasses
import socket
import sys
import threading

import gradio as gr
import numpy as np
import pytest
import small
from PIL import Image

from marjax.app import page, painting
from marjax.app.asked import MOST_IMAGES, Asked
from marjax.cli import main
from marjax.pipeline import Pipeline
from marjax.release import directory
from marjax.release.card import Card

STARTED = Asked(0, 1, 0, "", 1.0, 6, 8)
"""What the small model's page begins with."""


def pipe_of(**changes):
  mesh = small.one_device()
  card = small.card(**changes)
  return Pipeline(
    card, small.params(model=card.model), mesh, small.codec_params()
  )


@pytest.fixture(scope="module")
def pipe():
  return pipe_of()


@pytest.fixture
def answers(pipe, tmp_path):
  return page.Page(pipe, "out/small", str(tmp_path), main.sentence)


def request(query=""):
  """What gradio tells of a click."""
  headers = [(b"host", b"here:7860")]
  scope = {"type": "http", "headers": headers, "query_string": query.encode()}
  return gr.Request(gr.routes.fastapi.Request(scope))


def values(asked):
  return dataclasses.astuple(asked)


def editor(image, *, rows=slice(0), background=None):
  """What the browser gives where these rows of a canvas are painted."""
  canvas = painting.canvas_of(image)
  layer = np.zeros((*canvas.shape[:2], 4), np.uint8)
  layer[rows] = 255
  seen = canvas if background is None else background
  return {"background": seen, "layers": [layer]}


def test_the_page_begins_as_the_checkpoint_says(pipe):
  assert Asked.at_start(pipe) == STARTED
  assert STARTED.arguments(pipe) == {"seed": 0, "num_images": 1}


def test_a_preset_changes_its_settings_only(pipe, answers):
  before = Asked(3, 2, 5, "", 2.0, 6, 8)
  quick = before.with_preset(pipe, "quick")
  assert quick == Asked(3, 2, 5, "quick", 1.0, 2, 3)
  chosen = dataclasses.replace(before, preset="quick")
  assert answers.preset(*values(chosen)) == values(quick)
  assert quick.arguments(pipe) == {
    **{"seed": 5, "num_images": 2, "settings": "quick"}
  }


def test_settings_are_those_of_the_controls(pipe):
  asked = Asked(3, 2, 5, "quick", 2.5, 4, 7)
  named = asked.arguments(pipe)
  del named["seed"], named["num_images"]
  chosen = pipe.settings(named.pop("settings"), **named)
  assert (chosen.guidance_scale, chosen.num_ar_steps) == (2.5, 4)
  assert chosen.head.num_steps == 7


@pytest.mark.parametrize(
  "asked", [STARTED, Asked(-1, 16, 2**32 - 1, "quick", 2.55, 1, 250)]
)
def test_a_link_restores_the_controls(answers, asked):
  link = asked.link("here:7860")
  assert link.startswith("http://here:7860/?label=")
  query = link.partition("?")[2]
  assert answers.restore(request(query)) == values(asked)


def test_a_link_may_say_little(answers):
  assert answers.restore(request("preset=quick&label=4")) == values(
    Asked(4, 1, 0, "quick", 1.0, 2, 3)
  )


def test_a_link_may_name_its_class(answers):
  assert answers.restore(request("label=thing 2"))[0] == 2


@pytest.mark.parametrize(
  ("query", "words"),
  [
    ("label=otter", "otter"),
    ("label=[1]", "link.label is [1] (list); expected"),
    (f"num_images={MOST_IMAGES + 1}", "link.num_images is 17; expected"),
    ("seed=-1", "link.seed is -1; expected"),
    ("preset=best", "there is no preset 'best'"),
    ("labels=3", "labels"),
    ("guidance_scale=__import__('os')", "link.guidance_scale is"),
  ],
)
def test_a_wrong_link_is_one_sentence(answers, query, words):
  with pytest.raises(gr.Error) as raised:
    answers.restore(request(query))
  assert words in raised.value.message


def test_code_gives_the_same_picture(pipe, monkeypatch, tmp_path, answers):
  asked = Asked(3, 2, 5, "quick", 2.0, 4, 3)
  *frames, last = answers.draw(request(), page.BAR, False, *values(asked))
  assert frames == []
  picture, code, link, files, images = last
  assert link == asked.link("here:7860")
  monkeypatch.setattr("marjax.load", lambda name: {"out/small": pipe}[name])
  names = {}
  with contextlib.chdir(tmp_path):
    exec(code, names)
  np.testing.assert_array_equal(names["images"], images)
  np.testing.assert_array_equal(picture, painting.page_of(images))
  shown = [np.asarray(Image.open(path)) for path in files]
  np.testing.assert_array_equal(shown, images)


def test_a_reveal_begins_grey_and_ends_with_the_picture(answers, pipe):
  asked = Asked(3, 1, 5, "", 1.0, 6, 8)
  *frames, last = answers.draw(request(), page.BAR, True, *values(asked))
  assert len(frames) == 5
  grey = [(frame[0] == 128).all(-1).mean() for frame in frames]
  assert grey == sorted(grey, reverse=True)
  assert grey[0] > 0.5
  want = pipe.generate(3, seed=5, num_images=1)
  np.testing.assert_array_equal(last[0], painting.page_of(want))


def test_who_leaves_ends_the_drawing(answers, pipe, monkeypatch):
  ended, generate = threading.Event(), Pipeline.generate

  def watched(*args, watch, **how):
    def held(frame):
      watch(frame)
      assert left.wait(9)

    try:
      return generate(*args, **how, watch=held)
    except ValueError:
      ended.set()

  left = threading.Event()
  monkeypatch.setattr(Pipeline, "generate", watched)
  drawing = answers.draw(request(), page.BAR, True, *values(STARTED))
  assert (next(drawing)[0] == 128).any()
  drawing.close()
  left.set()
  assert ended.wait(9)


def test_an_edit_draws_what_was_painted(answers, pipe):
  image = pipe.generate(1, seed=2)[0]
  asked = Asked(3, 2, 5, "", 1.0, 6, 8)
  painted = editor(image, rows=slice(0, 60))  # a little of the first pixels
  *frames, last = answers.edit(
    request(), page.BAR, True, image, painted, *values(asked)
  )
  assert frames
  *_, code, _, files, images = last
  mask = np.zeros((8, 8), bool)
  mask[0] = True
  np.testing.assert_array_equal(np.asarray(Image.open(files[1])) > 0, mask)
  want = pipe.edit(image, mask, 3, seed=5, num_images=2).images
  np.testing.assert_array_equal(images, want)
  assert "pipe.edit(" in code


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    ({"rows": slice(0)}, "nothing is painted; expected some"),
    ({"background": np.zeros((512, 512, 3), np.uint8)}, "is not the picture"),
    ({"background": np.zeros((9, 9, 3), np.uint8)}, "is not the picture"),
    ({"rows": slice(512)}, "mask"),
  ],
)
def test_what_cannot_be_edited_is_one_sentence(answers, changed, words):
  image = np.full((8, 8, 3), 200, np.uint8)
  painted = editor(image, **{"rows": slice(9), **changed})
  with pytest.raises(gr.Error) as raised:
    [*answers.edit(request(), page.BAR, True, image, painted, *values(STARTED))]
  assert words in raised.value.message


def test_a_raster_model_says_what_it_cannot_edit(tmp_path):
  run = small.of_kind("raster")
  pipe = pipe_of(model=run.model, sampling=run.sampling, presets={})
  raster = page.Page(pipe, "out/raster", str(tmp_path), main.sentence)
  image = np.full((8, 8, 3), 200, np.uint8)
  painted = editor(image, rows=slice(128))
  asked = Asked.at_start(pipe)
  with pytest.raises(gr.Error, match="raster order only") as raised:
    [*raster.edit(request(), page.BAR, True, image, painted, *values(asked))]
  assert "\n" not in raised.value.message
  blocks = page.build(raster).blocks.values()
  shown = [getattr(block, "value", None) for block in blocks]
  assert page.RASTER in shown


def test_pictures_are_taken_by_number(answers):
  images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
  image, canvas = answers.take(images, 2)
  np.testing.assert_array_equal(image, images[1])
  np.testing.assert_array_equal(canvas[::64, ::64], images[1])
  for wrong in [(None, 1), (images, 0), (images, 3), (images, None)]:
    with pytest.raises(gr.Error, match="expected"):
      answers.take(*wrong)


def test_uploads_are_what_training_sees(answers, tmp_path):
  Image.new("RGB", (30, 20), (9, 99, 199)).save(tmp_path / "a.png")
  image, _ = answers.upload(str(tmp_path / "a.png"))
  np.testing.assert_array_equal(image, np.full((8, 8, 3), (9, 99, 199)))
  assert painting.read_upload(str(tmp_path / "a.png"), 8, 1).shape == (8, 8, 1)
  (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
  with pytest.raises(gr.Error, match=r"b\.png cannot be read"):
    answers.upload(str(tmp_path / "b.png"))


def test_defects_are_not_told_as_advice(answers):
  with pytest.raises(AttributeError), answers._told():
    raise AttributeError("a defect")


def test_one_is_drawn_at_a_time(answers):
  blocks = page.build(answers)
  drawing = [
    event for event in blocks.fns.values() if event.name in ("draw", "edit")
  ]
  assert [event.concurrency_limit for event in drawing] == [1, 1]
  assert len({event.concurrency_id for event in drawing}) == 1


def test_a_command_that_cannot_serve(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  argv = ["app", "--checkpoint", "nothing", "--port", "0"]

  def said(*argv):
    assert main.main(argv) == 2
    return capsys.readouterr().err

  assert said(*argv) == "marjax: --port is 0; expected 1 to 65535.\n"
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    argv[-1] = str(taken.getsockname()[1])
    assert "address already in use); expected a free port" in said(*argv)
  assert "nothing" in said(*argv)
  directory.save(tmp_path / "kl", Card("KL", small.CODEC), small.codec_params())
  assert "an autoencoder without a model" in said(*argv[:2], "kl", *argv[3:])
  monkeypatch.setitem(sys.modules, "gradio", None)
  monkeypatch.delitem(sys.modules, "marjax.app.page")
  monkeypatch.delattr("marjax.app.page")
  assert 'pip install "marjax[app]"' in said(*argv)
