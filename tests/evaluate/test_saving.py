"""Images saved while they are made: streamed, resumed, never overwritten."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sentences import refuses

from marjax.evaluate import sets
from marjax.evaluate.saved import Saving
from marjax.evaluate.saving import Writer

KINDS = ("png", "array_record", "npz")
COUNT, SHARD = 26, 8
SAVING = {
  kind: Saving(
    kind=kind,
    num_images=COUNT,
    height=4,
    width=4,
    channels=3,
    shard_size=SHARD,
    made_from={"seed": "1"},
  )
  for kind in KINDS
}
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4, 3), np.uint8)
LABELS = np.arange(COUNT) % 5


def place(tmp_path, kind):
  """What is saved to."""
  return tmp_path / ("set.npz" if kind == "npz" else "set")


def add(writer, start, stop):
  """Some of the images."""
  rows = np.arange(start, stop)
  writer.add(rows, IMAGES[rows], LABELS[rows])


def written(path):
  """Inode, size and time of the last writing, which reading leaves alone."""
  stat = path.stat()
  return stat.st_ino, stat.st_size, stat.st_mtime_ns


def files(folder):
  """Path → what was written, of what counts."""
  return {
    path: written(path)
    for path in folder.rglob("images-*")
    if not path.relative_to(folder).parts[0].startswith(".")
  }


def check_whole(out):
  """All images are there, by index, with their labels."""
  (batch,) = sets.batches(sets.open_set(out), np.arange(COUNT), COUNT)
  np.testing.assert_array_equal(batch.images, IMAGES)
  np.testing.assert_array_equal(batch.labels, LABELS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_writes_only_what_was_not_whole(kind, tmp_path):
  out = place(tmp_path, kind)
  # Not closed, as after a kill; one shard is whole, one begun.
  killed = Writer(out, SAVING[kind])
  for start in range(0, 15, 5):
    add(killed, start, start + 5)
  before = files(killed.folder)
  assert len(before) == 2
  writer = Writer(out, SAVING[kind])
  assert writer.pending == {1, 2, 3}
  np.testing.assert_array_equal(
    writer.needs(np.arange(COUNT)), np.arange(COUNT) >= SHARD
  )
  refuses(writer.finish, "lacks 3 of 4 shards, the first images-00001-of-00004")
  # A batch that begins before the first image that is needed.
  for start in range(5, COUNT, 7):
    add(writer, start, min(start + 7, COUNT))
  after = files(writer.folder)
  assert {path: after[path] for path in before} == before
  assert writer.finish() == out
  check_whole(out)
  left = [path.name for path in tmp_path.rglob(".*")]
  assert left == []
  killed.close()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_whole_is_left_alone(kind, tmp_path):
  out = place(tmp_path, kind)
  with Writer(out, SAVING[kind]) as writer:
    add(writer, 0, COUNT)
    writer.finish()
  before = {path: written(path) for path in tmp_path.rglob("*")}
  with Writer(out, SAVING[kind]) as writer:
    assert writer.pending == set()
    add(writer, 0, COUNT)
    assert writer.finish() == out
  assert {path: written(path) for path in tmp_path.rglob("*")} == before
  other = dataclasses.replace(SAVING[kind], made_from={"seed": "2"})
  message = "already exists|seed was 1 and is 2; expected"
  with pytest.raises((ValueError, FileExistsError), match=message):
    Writer(out, other)
  check_whole(out)


def test_hosts_may_write_shards_side_by_side(tmp_path):
  writers = [Writer(tmp_path / "set", SAVING["array_record"]) for _ in "ab"]
  for start in range(0, COUNT, 6):
    rows = np.arange(start, min(start + 6, COUNT))
    for host, writer in enumerate(writers):
      own = rows[rows // SHARD % 2 == host]
      writer.add(own, IMAGES[own], LABELS[own])
  check_whole(writers[0].finish())


def test_one_writer_has_several_shards_open(tmp_path):
  with Writer(tmp_path / "set", SAVING["png"]) as writer:
    for row in range(SHARD):
      rows = np.arange(row, COUNT, SHARD)
      writer.add(rows, IMAGES[rows], LABELS[rows])
    check_whole(writer.finish())


def test_an_archive_is_as_others_read_it(tmp_path):
  with Writer(tmp_path / "set.npz", SAVING["npz"]) as writer:
    add(writer, 0, COUNT)
    writer.finish()
  with np.load(tmp_path / "set.npz") as file:
    assert file.files == ["arr_0", "arr_1"]
    np.testing.assert_array_equal(file["arr_0"], IMAGES)
    np.testing.assert_array_equal(file["arr_1"], LABELS)
    assert file["arr_1"].dtype == np.int64
  assert zipfile.ZipFile(tmp_path / "set.npz").testzip() is None
  assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_images_without_labels(tmp_path):
  with Writer(tmp_path / "set.npz", SAVING["npz"]) as writer:
    writer.add(np.arange(COUNT), IMAGES, np.full(COUNT, -1))
    writer.finish()
  with np.load(tmp_path / "set.npz") as file:
    assert file.files == ["arr_0"]


def test_wrong_rows_are_refused(tmp_path):
  with Writer(tmp_path / "set", SAVING["png"]) as writer:
    refuses(lambda: add(writer, 1, 4), "expected those from 0 on")
    add(writer, 0, 3)
    refuses(lambda: add(writer, 2, 4), "expected those from 3 on")
    rows = np.arange(3, 5)
    refuses(
      lambda: writer.add(rows, IMAGES[:2, :3], LABELS[:2]),
      r"images \[2, 3, 4, 3\] with 2 labels .*; expected \[2, 4, 4, 3\]",
    )


def test_places_that_are_refused(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(FileExistsError, match=r"such as notes\.txt; expected"):
    Writer(tmp_path, SAVING["png"])
  refuses(lambda: Writer(tmp_path / "set", SAVING["npz"]), r"ends in \.npz")
  np.savez(tmp_path / "mine.npz", IMAGES)
  with pytest.raises(FileExistsError, match="of other images; expected"):
    Writer(tmp_path / "mine.npz", SAVING["npz"])
  refuses(
    lambda: dataclasses.replace(SAVING["png"], shard_size=1, num_images=10**6),
    "1000000 shards; expected at most 100000",
  )


def peak(out, count):
  """Bytes that saving so many images as .npz takes at most."""
  images = np.zeros((16, 64, 64, 3), np.uint8)
  settings = Saving(
    kind="npz", num_images=count, height=64, width=64, channels=3, shard_size=64
  )
  tracemalloc.start()
  with Writer(out, settings) as writer:
    for start in range(0, count, 16):
      writer.add(np.arange(start, start + 16), images, np.zeros(16, int))
    writer.finish()
  most = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  return most


PEAKS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_saving import peak
for count in (16, 64, 640):
  print(peak(f"{sys.argv[2]}/{count}.npz", count))
"""


def test_memory_is_flat_in_the_number_of_images(tmp_path):
  """In a process of its own, for all threads of one are traced."""
  told = run_alone(PEAKS, tmp_path, stdout=subprocess.PIPE).communicate()[0]
  _, few, many = map(int, told.split())
  assert many < few + 2**18


PROGRAM = """
import sys, time
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_saving import COUNT, IMAGES, LABELS, SAVING
from marjax.evaluate.saving import Writer
with Writer(sys.argv[2], SAVING["png"]) as writer:
  for row in range(COUNT):
    rows = np.array([row])
    writer.add(rows, IMAGES[rows], LABELS[rows])
    time.sleep(0.05)
"""


def run_alone(program, out, **how):
  """A process that runs a program which imports from here."""
  folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
  path = os.pathsep.join([str(Path(__file__).parents[2]), *folders])
  command = [sys.executable, "-c", program, folders[0], str(out)]
  env = {**os.environ, "PYTHONPATH": path}
  return subprocess.Popen(command, env=env, **how)


def test_a_process_is_killed(tmp_path):
  """kill -9, in the middle of a shard."""
  out = tmp_path / "set"
  process = run_alone(PROGRAM, out)
  whole = out / "images-00000-of-00004.json"
  deadline = time.monotonic() + 60
  while not whole.exists() and time.monotonic() < deadline:
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  before = written(whole)
  with Writer(out, SAVING["png"]) as writer:
    assert 0 not in writer.pending
    assert writer.pending
    add(writer, 0, COUNT)
    writer.finish()
  assert written(whole) == before
  check_whole(out)
