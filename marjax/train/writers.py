"""Writers: where scalars and images of a run go.

1. A writer has the method names of clu's MetricWriter, so clu's own fit in.
2. `open_writer` gives one for the log, metrics.jsonl and TensorBoard's event
   files. None of them needs TensorFlow.
3. Opened at the step that a run resumes from, the files forget what came after
   it: a curve has each step once, however often the run was killed.
4. On this machine what is written is appended at once, in one write: a kill
   cuts at most the last one. In a bucket nothing can be appended: `flush`
   writes a file again, whole, so an event file of 1 MiB is followed by a new
   one.
"""

import contextlib
import io
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from marjax import outputs
from marjax.outputs import AnyPath
from marjax.ticks import heard

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
  if "loss" not in scalars:  # a line of scores
    parts += [f"{name} {value:.4g}" for name, value in scalars.items()]
  if "seconds_left" in scalars:
    minutes, seconds = divmod(round(scalars["seconds_left"]), 60)
    hours, minutes = divmod(minutes, 60)
    parts.append(f"{hours}:{minutes:02}:{seconds:02} left")
  return "  ".join(parts)


class Appended(Writer):
  """A file that only grows.

  Every method raises OSError, one sentence, where the file cannot be written.
  """

  def __init__(self, path: AnyPath, content: bytes = b""):
    """`content` is what an existing file has, if it is in a bucket."""
    self._path, self._is_new = path, True
    with self._one_sentence():
      if outputs.is_remote(path):
        self._file = io.BytesIO()
        self._file.write(content)
      else:
        # Unbuffered, so that nothing is left for a close to fail on.
        self._file = open(path, "ab", buffering=0)

  def write(self, content: bytes) -> None:
    """Appends; in a bucket, with the next `flush`."""
    self._is_new = True
    with self._one_sentence():
      while content:  # a disk that fills up takes a part
        content = content[self._file.write(content) :]

  def size(self) -> int:
    """Bytes written, with those that wait for `flush`."""
    return self._file.tell()

  def flush(self) -> None:
    """Leaves nothing in this process's memory."""
    if self._is_new and outputs.is_remote(self._path):
      with self._one_sentence():
        self._path.write_bytes(self._file.getvalue())
      self._is_new = False

  def close(self) -> None:
    """Flushes and closes."""
    self.flush()
    self._file.close()

  @contextlib.contextmanager
  def _one_sentence(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      raise OSError(
        f"{self._path} cannot be written ({outputs.reason(error)}); the"
        " checkpoints are intact: make room, or see to it that you can write"
        " there, and run the same command again."
      ) from error


class JsonLinesWriter(Appended):
  """metrics.jsonl: one JSON object per report, scalars only."""

  def __init__(self, path: AnyPath, resumed_from: int):
    """Keeps the lines of an existing file up to step `resumed_from`."""
    lines = _lines_until(path, resumed_from)
    if not outputs.is_remote(path):
      outputs.write(path, lines, overwrite=True)
    super().__init__(path, lines)

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    """Appends one line."""
    line = json.dumps({"step": step, **scalars}, allow_nan=False)
    self.write(line.encode() + b"\n")


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

  TensorBoard's records, but not its writer: that one appends in a thread, whose
  errors nobody catches, and cannot append in a bucket.
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
    if outputs.is_remote(self._logdir) and self._file.size() > MAX_REWRITTEN:
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


class RunWriter(TensorBoardWriter):
  """All of a run: event files, metrics.jsonl, a line per report in the log."""

  def __init__(self, workdir: AnyPath, num_steps: int, resumed_from: int):
    self._num_steps = num_steps
    self._lines = JsonLinesWriter(workdir / "metrics.jsonl", resumed_from)
    super().__init__(workdir, resumed_from)

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    """Tells the log and both files."""
    log.info("%s", console_line(step, self._num_steps, scalars))
    heard()
    self._lines.write_scalars(step, scalars)
    super().write_scalars(step, scalars)

  def flush(self) -> None:
    """Leaves nothing in this process's memory."""
    self._lines.flush()
    super().flush()

  def close(self) -> None:
    """Flushes and closes both files."""
    self._lines.close()
    super().close()


def open_writer(workdir: AnyPath, num_steps: int, resumed_from: int) -> Writer:
  """The writer of a run; with several processes only the first one writes."""
  if jax.process_index() > 0:
    return Writer()
  return RunWriter(workdir, num_steps, resumed_from)
