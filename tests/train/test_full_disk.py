"""Storage that fills up or closes stops a run, harms nothing, and it goes on.

Where file systems cannot be mounted, a limit on the size of files stands in for
the full one.
"""

import contextlib
import resource
import shutil
import subprocess
import time

import pytest
from train.shared import assert_same, at_batch, losses, tiny

from marjax.release import workdir as workdirs
from marjax.train import loop

HABITS = {"checkpoint_every": 2, "keep_checkpoints": 50, "num_steps": 10}


def train(workdir, **habits):
  return loop.train(tiny(**HABITS | habits), workdir)


@pytest.fixture(scope="module")
def straight(quick, tmp_path_factory):
  """The last state of a run that nothing disturbed."""
  return train(tmp_path_factory.mktemp("straight"))


def mount(folder, options):
  command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
  return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
  """Changes the options of the small file system that is mounted there."""
  folder = tmp_path / "disk"
  folder.mkdir()
  try:
    is_mounted = mount(folder, "size=600k")
  except FileNotFoundError:
    is_mounted = False
  if not is_mounted:
    pytest.skip("file systems cannot be mounted here")

  def remount(options):
    assert mount(folder, f"remount,{options}")

  remount.folder = folder
  yield remount
  subprocess.run(["umount", "--lazy", str(folder)], check=True)


def goes_on(workdir, straight):
  """Whether the same command ends as if nothing had happened."""
  newest = workdirs.latest_step(workdir / "checkpoints")
  assert newest is not None
  assert newest < 10
  assert workdirs.damage(workdir / "checkpoints" / str(newest)) is None
  assert_same(train(workdir), straight)
  assert [step for step, _ in losses(workdir)] == list(range(2, 11, 2))


@pytest.mark.slow
def test_a_disk_that_fills_up(straight, disk):
  disk("size=20m")
  workdir = disk.folder / "run"
  train(workdir, num_steps=4)
  disk(f"size={shutil.disk_usage(disk.folder).used + 50_000}")
  with pytest.raises(OSError, match=r"be written.*[Nn]o space left") as caught:
    train(workdir)
  assert "\n" not in str(caught.value)
  assert "step 4 is intact: make room" in str(caught.value)
  disk("size=20m")
  goes_on(workdir, straight)


@pytest.mark.slow
def test_a_disk_that_is_read_only(straight, disk):
  disk("size=20m")
  workdir = disk.folder / "run"
  train(workdir, num_steps=4)
  disk("ro")
  with pytest.raises(OSError, match=r"be written.*[Rr]ead-only") as caught:
    train(workdir)
  assert "\n" not in str(caught.value)
  disk("rw")
  goes_on(workdir, straight)


def test_a_disk_without_room_is_told_before_anything_is_written(
  quick, tmp_path, monkeypatch, caplog
):
  usage = shutil.disk_usage("/")._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(OSError, match=r"step 2 could not .*[Nn]o space left"):
    train(tmp_path)
  assert not [line for line in caplog.records if line.levelname == "ERROR"]
  assert workdirs.steps(tmp_path / "checkpoints") == []


def test_a_disk_that_is_full_from_the_start(quick, disk):
  fill = disk.folder / "fill"
  with contextlib.suppress(OSError):
    fill.write_bytes(bytes(10**6))
  with pytest.raises(
    OSError, match=r"cannot be written.*[Nn]o space"
  ) as caught:
    train(disk.folder / "run")
  assert "\n" not in str(caught.value)


def test_a_disk_too_full_for_a_line_of_metrics(quick, disk, monkeypatch):
  def fill(batch):
    with contextlib.suppress(OSError):
      (disk.folder / "fill").write_bytes(bytes(10**6))

  at_batch(monkeypatch, 8, fill)
  with pytest.raises(OSError, match="no space left on device") as caught:
    train(disk.folder / "run", num_steps=200, checkpoint_every=200, log_every=1)
  assert "checkpoints are intact: make room" in str(caught.value)


@pytest.mark.slow
def test_files_that_may_not_grow(straight, tmp_path, monkeypatch):
  """Runs everywhere: such a file fails as on a full disk."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def limit(batch):
    while workdirs.latest_step(tmp_path / "checkpoints") != 4:
      time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

  with monkeypatch.context() as patch:
    at_batch(patch, 6, limit)
    try:
      with pytest.raises(OSError, match=r"be written.*too large") as caught:
        train(tmp_path)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert "\n" not in str(caught.value)
  assert "step 4 is intact" in str(caught.value)
  goes_on(tmp_path, straight)
