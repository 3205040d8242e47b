"""The page: components, what its buttons do, and the server.

1. While pictures are drawn, in a thread of their own, the page shows what is
   known of them so far, every few steps.
2. An edit takes the picture from here, not from the browser, which may round
   its pixels; only what was painted on it comes from there.
3. Nothing leaves the machine. Files are in a folder that goes with the server;
   uploads, pictures and clicks that wait are bounded.
"""

import contextlib
import contextvars
import html
import os
import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import astuple, dataclass
from typing import Any

import gradio as gr
import numpy as np

from marjax.app import painting
from marjax.app.asked import MOST_IMAGES, Asked
from marjax.backbone.classes import NO_CLASS, name_of
from marjax.pipeline import Pipeline
from marjax.schema import check

MOST_WAITING = 8
"""Clicks that wait for their turn; one is drawn at a time."""

LARGEST_UPLOAD = "20mb"

POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
"""What the browser may fetch: this page, and nothing from elsewhere."""

HEAD = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
CSS = """
#picture img {image-rendering: pixelated}
#picture .minimal .progress-level {display: none}
footer {display: none}
"""

RASTER = (
  "This model draws in raster order, so it edits only what, read like a page,"
  " is all from one token on."
)

# tqdm's bars are shown on the page, too.
BAR = gr.Progress(track_tqdm=True)


@dataclass(frozen=True)
class Page:
  """What the buttons do.

  Attributes:
    pipe: the model. name: what `marjax.load` takes.
    folder: for files to download.
    sentence: what a person can do about an error; None for a defect.
  """

  pipe: Pipeline
  name: str
  folder: str
  sentence: Callable[[Exception], str | None]

  def draw(
    self, request: gr.Request, progress=BAR, is_revealed=True, *values: Any
  ):
    """Yields the page's results, what is known of the pictures first."""
    with self._told():
      asked = Asked.of_values(*values)
      how = asked.arguments(self.pipe)
      images = yield from _drawn(
        is_revealed, self.pipe.generate, asked.label, **how
      )
      files = painting.numbered("image", images)
      yield self._results(request, asked, images, files)

  def edit(
    self,
    request: gr.Request,
    progress=BAR,
    is_revealed=True,
    image=None,
    editor=None,
    *values: Any,
  ):
    """The same for an image and what was painted on it."""
    with self._told():
      check(
        image is not None,
        "there is no picture to paint on; expected one: draw it and take it, or"
        " upload one.",
      )
      asked = Asked.of_values(*values)
      mask = painting.mask_of(editor, image)
      how = asked.arguments(self.pipe)
      edited = yield from _drawn(
        is_revealed, self.pipe.edit, image, mask, asked.label, **how
      )
      images = edited.images
      files = {"image": image, "mask": mask.astype(np.uint8) * 255}
      files |= painting.numbered("edited", images)
      yield self._results(request, asked, images, files, is_edit=True)

  def take(self, images: np.ndarray | None, number: int | None):
    """A picture that was drawn, and its canvas."""
    with self._told():
      count = 0 if images is None else len(images)
      check(count > 0, "nothing is drawn yet; expected a picture: draw one.")
      check(
        1 <= (number or 0) <= count,
        f"there is no picture {number}; expected 1 to {count}.",
      )
      return images[number - 1], painting.canvas_of(images[number - 1])

  def upload(self, path: str):
    """A picture of one's own, and its canvas."""
    with self._told():
      codec = self.pipe.card.codec
      image = painting.read_upload(path, codec.image_size, codec.channels)
      return image, painting.canvas_of(image)

  def preset(self, *values: Any):
    """All controls, by the preset that is chosen."""
    with self._told():
      asked = Asked.of_values(*values)
      return astuple(asked.with_preset(self.pipe, asked.preset))

  def restore(self, request: gr.Request):
    """All controls, as the address says."""
    with self._told():
      return astuple(Asked.of_query(self.pipe, dict(request.query_params)))

  def _results(self, request, asked, images, files, *, is_edit: bool = False):
    code = asked.code(self.pipe, self.name, is_edit=is_edit)
    link = asked.link(request.headers["host"])
    paths = painting.write_files(self.folder, **files)
    return painting.page_of(images), code, link, paths, images

  @contextlib.contextmanager
  def _told(self):
    """Makes one sentence on the page of what a person can mend."""
    try:
      yield
    except Exception as error:
      text = self.sentence(error)
      if text is None:
        raise
      raise gr.Error(text, duration=None, print_exception=False) from error


def _drawn(
  is_revealed: bool, call: Callable, *args: Any, **how: Any
) -> Generator[tuple, None, Any]:
  """Yields results with frames of what a call draws; returns what it gives.

  Where nobody looks at them any longer, the next frame ends the call.
  """
  seen, result, is_left = queue.SimpleQueue(), Future(), threading.Event()

  def watch(frame: np.ndarray) -> None:
    check(not is_left.is_set(), "nobody looks at the page.")
    seen.put(frame)

  def run() -> None:
    watching = {"watch": watch} if is_revealed else {}
    try:
      result.set_result(call(*args, progress=True, **watching, **how))
    except BaseException as error:
      result.set_exception(error)
    seen.put(None)

  # The context has the page's bar.
  context = contextvars.copy_context()
  threading.Thread(target=context.run, args=[run], daemon=True).start()
  try:
    while (frame := seen.get()) is not None:
      yield painting.page_of(frame), *[gr.skip()] * 4
    return result.result()
  finally:
    is_left.set()


def build(page: Page) -> gr.Blocks:
  """The components, and which of them each button reads and writes."""
  card, pipe = page.pipe.card, page.pipe
  with gr.Blocks(
    title=f"marjax: {card.name}",
    analytics_enabled=False,
    delete_cache=(600, 3600),
  ) as blocks:
    gr.HTML(f"<h2>{html.escape(card.name)}</h2>")
    with gr.Row():
      with gr.Column(scale=2):
        controls = _controls(pipe)
        is_revealed = gr.Checkbox(True, label="Show the reveal")
        draw = gr.Button("Draw", variant="primary", elem_id="draw")
      with gr.Column(scale=3):
        results = _results()
      with gr.Column(scale=3):
        with gr.Row():
          which = gr.Number(1, precision=0, label="Picture", min_width=80)
          take = gr.Button("Take it", elem_id="take", min_width=80)
          upload = gr.UploadButton("Upload one", elem_id="upload", min_width=80)
        canvas = _canvas()
        edit = gr.Button("Edit", variant="primary", elem_id="edit")
        if card.model.backbone.is_raster:
          gr.Markdown(RASTER)
    image = gr.State()
    one = {"concurrency_limit": 1, "concurrency_id": "model"}
    shown = {"show_progress_on": results[0], "api_visibility": "private"}
    shown["show_progress"] = "minimal"  # the bar, which hides no picture
    light = {"show_progress": "hidden", "api_visibility": "private"}
    how = [is_revealed, *controls]
    draw.click(page.draw, how, results, **one, **shown)
    how[1:1] = [image, canvas]
    edit.click(page.edit, how, results, **one, **shown)
    take.click(page.take, [results[-1], which], [image, canvas], **light)
    upload.upload(page.upload, upload, [image, canvas], **light)
    controls[3].input(page.preset, controls, controls, **light)
    blocks.load(page.restore, None, controls, **light)
  return blocks


def _controls(pipe: Pipeline) -> list[gr.components.Component]:
  """One for each field of `Asked`, in their order."""
  start, card = Asked.at_start(pipe), pipe.card
  model = card.model
  classes = [
    (f"{i} {name_of(i, card.class_names)}" if card.class_names else str(i), i)
    for i in range(card.num_classes)
  ]
  presets = dict.fromkeys([*card.presets, *model.head.Settings.PRESETS])
  scale, steps = start.guidance_scale, start.num_head_steps
  return [
    gr.Dropdown(
      [*classes, ("none", NO_CLASS)],
      value=start.label,
      label="Class",
      elem_id="label",
    ),
    gr.Slider(
      1, MOST_IMAGES, value=1, step=1, label="Pictures", elem_id="num_images"
    ),
    gr.Number(start.seed, precision=0, label="Seed", elem_id="seed"),
    gr.Dropdown(
      [("the checkpoint's own", ""), *((name, name) for name in presets)],
      value=start.preset,
      label="Preset",
      elem_id="preset",
    ),
    gr.Slider(
      0,
      max(10, scale),
      value=scale,
      step=0.05,
      label="Guidance",
      elem_id="guidance_scale",
    ),
    gr.Slider(
      1,
      max(2, model.backbone.num_tokens),
      value=start.num_ar_steps,
      step=1,
      label="AR steps",
      elem_id="num_ar_steps",
      interactive=not model.backbone.is_sequential,
    ),
    gr.Slider(
      1,
      max(250, steps),
      value=steps,
      step=1,
      label="Head steps",
      elem_id="num_head_steps",
      visible=steps > 1,
    ),
  ]


def _results() -> list[gr.components.Component]:
  """What a drawing gives: picture, code, link, files, the images."""
  return [
    gr.Image(
      label="Picture",
      format="png",
      interactive=False,
      height=painting.SHOWN,
      buttons=["download", "fullscreen"],
      elem_id="picture",
    ),
    gr.Code(label="The same in Python", language="python", elem_id="code"),
    gr.Textbox(
      label="Link to these settings", buttons=["copy"], elem_id="link"
    ),
    gr.File(label="Files, in the model's size", elem_id="files"),
    gr.State(),
  ]


def _canvas() -> gr.ImageEditor:
  return gr.ImageEditor(
    label="Paint where to draw anew",
    format="png",
    sources=[],
    transforms=[],
    layers=False,
    brush=gr.Brush(default_size=64, colors=["#ff7a1a"], color_mode="fixed"),
    canvas_size=(painting.SHOWN, painting.SHOWN),
    elem_id="canvas",
  )


def serve(page: Page, host: str, port: int) -> gr.Blocks:
  """Serves the page until it is closed; returns at once.

  Raises:
    OSError: the port is taken.
  """
  # Both are read as components are made.
  os.environ["GRADIO_TEMP_DIR"] = page.folder
  os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
  # The server asks itself whether it is there, and no proxy can answer that.
  for name in ("NO_PROXY", "no_proxy"):
    known = os.environ.get(name)
    os.environ[name] = f"{known},{host}" if known else host
  blocks = build(page)
  blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=4)
  blocks.launch(
    server_name=host,
    server_port=port,
    share=False,
    ssr_mode=False,
    mcp_server=False,
    pwa=False,
    enable_monitoring=False,
    run_history=False,
    inbrowser=False,
    quiet=True,
    prevent_thread_lock=True,
    max_file_size=LARGEST_UPLOAD,
    footer_links=[],
    head=HEAD,
    css=CSS,
  )
  return blocks
