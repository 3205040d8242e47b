"""What was written can be read back, also after a kill."""

import io
import pathlib

import numpy as np
import pytest
from train.shared import rows

from marjax.train.writers import (
  Appended,
  JsonLinesWriter,
  TensorBoardWriter,
  console_line,
  open_writer,
)


def test_json_lines_hold_each_step_once_after_a_resume(tmp_path):
  path = tmp_path / "metrics.jsonl"
  writer = JsonLinesWriter(path, 0)
  for step in (10, 20, 30):
    writer.write_scalars(step, {"loss": step / 10})
  writer.close()
  writer = JsonLinesWriter(path, 20)
  writer.write_scalars(30, {"loss": 3.5})
  writer.close()
  assert [(line["step"], line["loss"]) for line in rows(path)] == [
    (10, 1.0),
    (20, 2.0),
    (30, 3.5),
  ]


def test_a_line_cut_by_a_kill_is_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 10, "loss": 1.0}\n{"step": 20, "lo')
  writer = JsonLinesWriter(path, 20)
  writer.write_scalars(20, {"loss": 2.0})
  writer.close()
  assert [line["step"] for line in rows(path)] == [10, 20]


def test_a_whole_number_cut_short_is_not_mistaken_for_a_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 10, "loss": 1.0}')
  JsonLinesWriter(path, 20).close()
  assert rows(path) == []


def test_damaged_lines_are_left_out_and_counted(tmp_path, caplog):
  path = tmp_path / "metrics.jsonl"
  good = b'{"step": 10, "loss": 1.0}\n'
  odd = [b"[1]", b'"step"', b'{"step": "x"}', b'{"stop": 1}', b"\xff{", b"7"]
  path.write_bytes(good + b"\n".join([*odd, b"[" * 10**5, b'{"step": null}\n']))
  caplog.set_level("INFO", "marjax")
  JsonLinesWriter(path, 20).close()
  assert path.read_bytes() == good
  assert "8 damaged lines are left out" in caplog.text


def test_a_full_disk_is_one_sentence():
  file = Appended(pathlib.Path("/dev/full"))
  with pytest.raises(OSError, match="/dev/full cannot be written") as caught:
    file.write(b"line")
  assert "(no space left on device)" in str(caught.value)
  assert "\n" not in str(caught.value)
  file.close()


def test_what_a_disk_took_in_parts_is_whole(tmp_path):
  class Slow(io.BytesIO):
    def write(self, content):
      return super().write(content[:2])

  file = Appended(tmp_path / "file")
  file._file.close()
  file._file = Slow()
  file.write(b"a line")
  assert file._file.getvalue() == b"a line"


def test_lines_are_on_disk_before_close(tmp_path):
  writer = JsonLinesWriter(tmp_path / "metrics.jsonl", 0)
  writer.write_scalars(1, {"loss": 1.0})
  assert rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
  writer.close()


def events(logdir):
  from tensorboard.backend.event_processing import event_file_loader

  return [
    event
    for file in sorted(logdir.glob("events.out.tfevents.*"))
    for event in event_file_loader.LegacyEventFileLoader(str(file)).Load()
  ]


def test_tensorboard_reads_scalars_images_and_settings(tmp_path):
  writer = TensorBoardWriter(tmp_path, 0)
  writer.write_hparams({"training.batch_size": 8, "model.widths": (1, 2)})
  writer.write_scalars(5, {"loss": 0.25})
  grey = np.arange(12, dtype=np.uint8).reshape(1, 3, 4, 1)
  writer.write_images(5, {"samples": grey})
  writer.flush()
  values = {
    value.tag: (event.step, value)
    for event in events(tmp_path)
    for value in event.summary.value
  }
  writer.close()
  assert values["loss"][0] == 5
  assert values["loss"][1].simple_value == 0.25
  image = values["samples/0"][1].image
  assert (image.height, image.width, image.colorspace) == (3, 4, 1)
  assert image.encoded_image_string.startswith(b"\x89PNG")
  assert any("hparams" in tag for tag in values)


def test_tensorboard_forgets_what_a_kill_made_void(tmp_path):
  from tensorboard.backend.event_processing import event_accumulator

  for resumed_from, steps in ((0, (10, 20, 30)), (20, (30, 40))):
    writer = TensorBoardWriter(tmp_path, resumed_from)
    for step in steps:
      writer.write_scalars(step, {"loss": float(step + resumed_from)})
    writer.close()
  # Event files are ordered by name: second, host, process, counter.
  curve = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
  points = [(point.step, point.value) for point in curve.Scalars("loss")]
  assert points == [(10, 10.0), (20, 20.0), (30, 50.0), (40, 60.0)]


def test_the_console_line_is_for_people():
  scalars = {
    "loss": 0.31,
    "mse": 1.0,
    "grad_norm": 0.5,
    "images_per_second": 410.0,
    "data_wait_share": 0.012,
    "seconds_left": 3661.0,
  }
  assert console_line(200, 4500, scalars) == (
    "step 200/4500  loss 0.3100  gradient 0.500  410 images/s  data 1%"
    "  1:01:01 left"
  )


def test_a_run_writes_to_console_file_and_tensorboard(tmp_path, caplog):
  caplog.set_level("INFO")
  writer = open_writer(tmp_path, num_steps=10, resumed_from=0)
  writer.write_scalars(5, {"loss": 1.0})
  writer.close()
  assert "step 5/10  loss 1.0000" in caplog.text
  assert rows(tmp_path / "metrics.jsonl") == [{"step": 5, "loss": 1.0}]
  assert any(event.step == 5 for event in events(tmp_path))
