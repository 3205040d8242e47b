"""Writers: where scalars and images of a run go.

1. A writer has the method names of clu's MetricWriter, so clu's own fit in.
2. `open_writer` gives one that fans out to the console, to metrics.jsonl and to
   TensorBoard's event files. None of them needs TensorFlow.
3. Opened at the step that a run resumes from, the files forget what came after
   it: a curve has each step once, however often the run was killed.
4. In a bucket `flush` writes a file again, whole; so an event file that has
   grown to 1 MiB is followed by a new one.
"""

import contextlib
import io
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from marjax import outputs
from marjax.outputs import AnyPath
from marjax.train.appended import Appended

log = logging.getLogger(__name__)

MAX_REWRITTEN = 2**20
"""Bytes of an event file in a bucket, from which on there is a new one."""

Scalars = Mapping[str, float | list[int]]  # lists for lines of JSON only
Images = Mapping[str, np.ndarray]


class Writer:
  """Takes everything and writes nothing; writers override what they write."""

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    """Writes one step's numbers, name to finite value."""

  def write_images(self, step: int, images: Images) -> None:
    """Writes one step's images, name to uint8 [N, H, W, C], C = 1 or 3."""

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Writes the settings of the run, flat, once."""

  def flush(self) -> None:
    """Leaves nothing in this process's memory."""

  def close(self) -> None:
    """Flushes and closes; nothing can be written after."""


class ConsoleWriter(Writer):
  """One line per report, through logging."""

  def __init__(self, num_steps: int):
    self._num_steps = num_steps

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    """Logs what a person watching wants to know."""
    log.info("%s", console_line(step, self._num_steps, scalars))


_FORMS = {
  "loss": "loss {:.4f}",
  "grad_norm": "gradient {:.3f}",
  "images_per_second": "{:.4g} images/s",
  "tflops_per_second": "{:.3g} TFLOP/s",
  "flop_utilization": "{:.1%} of peak",
  "data_wait_share": "data {:.0%}",
}


def console_line(step: int, num_steps: int, scalars: Scalars) -> str:
  """For example: step 200/4500  loss 0.3100  ...  410 images/s  0:03:10 left"""
  parts = [f"step {step}/{num_steps}"]
  parts += [
    form.format(scalars[name])
    for name, form in _FORMS.items()
    if name in scalars
  ]
  if "seconds_left" in scalars:
    minutes, seconds = divmod(round(scalars["seconds_left"]), 60)
    hours, minutes = divmod(minutes, 60)
    parts.append(f"{hours}:{minutes:02}:{seconds:02} left")
  return "  ".join(parts)


class JsonLinesWriter(Writer):
  """metrics.jsonl: one JSON object per report, scalars only."""

  def __init__(self, path: AnyPath, resumed_from: int):
    """Keeps the lines of an existing file up to step `resumed_from`."""
    kept = _lines_until(path, resumed_from)
    if not outputs.is_remote(path):
      outputs.write(path, kept, overwrite=True)
    self._file = Appended(path, kept)

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    """Appends one line."""
    line = json.dumps({"step": step, **scalars}, allow_nan=False)
    self._file.write(line.encode() + b"\n")

  def flush(self) -> None:
    """Leaves no line in this process's memory."""
    self._file.flush()

  def close(self) -> None:
    """Flushes and closes the file."""
    self._file.close()


def _lines_until(path: AnyPath, step: int) -> bytes:
  content, lines, num_damaged = b"", [], 0
  with contextlib.suppress(FileNotFoundError), outputs.reading(path):
    content = path.read_bytes()
  for line in content.splitlines(keepends=True):
    try:
      is_wanted = json.loads(line)["step"] <= step
    except (ValueError, LookupError, TypeError, RecursionError):
      # A line without its newline was cut by a kill.
      num_damaged += line.endswith(b"\n")
      continue
    if is_wanted and line.endswith(b"\n"):
      lines.append(line)
  if num_damaged:
    log.info("%s: %d damaged lines are left out", path, num_damaged)
  return b"".join(lines)


class TensorBoardWriter(Writer):
  """Event files, as TensorBoard reads them.

  TensorBoard's own writer appends in a thread, whose errors nobody catches.
  """

  def __init__(self, logdir: AnyPath, resumed_from: int):
    """Tells TensorBoard to forget the steps after `resumed_from`."""
    from tensorboard.compat.proto import event_pb2

    self._logdir = logdir
    self._open()
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(resumed_from + 1, session_log=start)

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    """One curve per name."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [
      Summary.Value(tag=name, simple_value=value)
      for name, value in scalars.items()
    ]
    self._add(step, summary=Summary(value=values))

  def write_images(self, step: int, images: Images) -> None:
    """One picture per image."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [
      Summary.Value(tag=f"{name}/{i}", image=_encoded(image))
      for name, batch in images.items()
      for i, image in enumerate(batch)
    ]
    self._add(step, summary=Summary(value=values))

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """What is no number, bool or string is written as a string."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    plain = {
      name: value if isinstance(value, bool | int | float | str) else str(value)
      for name, value in hparams.items()
    }
    self._add(0, summary=hparams_pb(plain))

  def flush(self) -> None:
    """Leaves no event in this process's memory."""
    self._file.flush()
    if outputs.is_remote(self._logdir) and self._file.size > MAX_REWRITTEN:
      self._open()

  def close(self) -> None:
    """Flushes and closes the file."""
    self._file.close()

  def _open(self) -> None:
    # TensorBoard reads files in the order of their names.
    name = (
      f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}"
      f".{os.getpid()}"
    )
    self._file = Appended(self._logdir / name)
    self._add(0, file_version="brain.Event:2")

  def _add(self, step: int, **what) -> None:
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    event = event_pb2.Event(wall_time=time.time(), step=step, **what)
    RecordWriter(self._file).write(event.SerializeToString())


def _encoded(image: np.ndarray):
  """uint8 [H, W, C] → TensorBoard's image message."""
  from PIL import Image
  from tensorboard.compat.proto.summary_pb2 import Summary

  height, width, channels = image.shape
  buffer = io.BytesIO()
  picture = Image.fromarray(image[..., 0] if channels == 1 else image)
  picture.save(buffer, format="PNG")
  return Summary.Image(
    height=height,
    width=width,
    colorspace=channels,
    encoded_image_string=buffer.getvalue(),
  )


class FanOut(Writer):
  """Calls every writer in turn."""

  def __init__(self, *writers: Writer):
    self._writers = writers

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    """As in `Writer`."""
    for writer in self._writers:
      writer.write_scalars(step, scalars)

  def write_images(self, step: int, images: Images) -> None:
    """As in `Writer`."""
    for writer in self._writers:
      writer.write_images(step, images)

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """As in `Writer`."""
    for writer in self._writers:
      writer.write_hparams(hparams)

  def flush(self) -> None:
    """As in `Writer`."""
    for writer in self._writers:
      writer.flush()

  def close(self) -> None:
    """As in `Writer`."""
    for writer in self._writers:
      writer.close()


def open_writer(workdir: AnyPath, num_steps: int, resumed_from: int) -> FanOut:
  """The writer of a run; with several processes only the first one writes."""
  if jax.process_index() > 0:
    return FanOut()
  return FanOut(
    ConsoleWriter(num_steps),
    JsonLinesWriter(workdir / "metrics.jsonl", resumed_from),
    TensorBoardWriter(workdir, resumed_from),
  )
