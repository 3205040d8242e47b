"""Runs that are killed ten times, and of two processes: the same numbers."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from evaluate import stub
from evaluate.networks import moments_of
from train import together

from marjax.evaluate import sets

NUM_KILLS = 10
FLAGS = ["--scores", "fid,is,pr", "--network", "projection"]
FLAGS += ["--guidance", "1,2.9", "--num_images", "800", "--batch_size", "16"]

PROGRAM = """
import os, sys
sys.path.insert(0, "tests")
import jax, numpy as np
from evaluate import stub
from marjax.cli.main import main
from marjax.evaluate import begun, sweep
from marjax.evaluate.networks import kinds

def noted(seen, real, *rest, is_first):
  which = "first" if is_first else "last"
  for name, of in (("generated", seen), ("real", real.real)):
    file = f"{os.environ['NOTES']}/{jax.process_index()}_{name}_{which}"
    np.savez(file, mean=of.moments.mean, covariance=of.moments.covariance)
  return scored(seen, real, *rest, is_first=is_first)

kinds.NETWORKS[stub.NETWORK.name] = stub.NETWORK
begun.SAVE_SECONDS, begun.SAVE_SHARE = 0.0, 1.0
if os.environ["NOTES"]:
  scored, sweep.scored = sweep.scored, noted
sys.exit(main(sys.argv[1:]))
"""
"""Saves after each batch, and notes the moments that scores are made of."""


def start(place, out, log, *flags, devices=1, notes=""):
  """`marjax evaluate` in a process of its own; see PROGRAM."""
  return subprocess.Popen(
    [
      *(sys.executable, "-c", PROGRAM, "evaluate"),
      *("--checkpoint", str(place / "model"), "--out", str(out)),
      *("--weights", str(place / "weights.safetensors")),
      *("--against", str(place / "real.npz"), "--num_real", "60"),
      *(*FLAGS, *flags),
    ],
    cwd=together.ROOT,
    env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "NOTES": str(notes)},
    stdout=log,
    stderr=subprocess.STDOUT,
  )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return stub.make(tmp_path_factory.mktemp("place"))


def finished(place, folder, *flags, **how):
  """The folder of a run that nothing happened to."""
  with open(folder / "log", "w") as log:
    process = start(place, folder / "out", log, *flags, **how)
    assert process.wait(240) == 0, (folder / "log").read_text()
  return folder / "out"


@pytest.fixture(scope="module")
def straight(place, tmp_path_factory):
  return finished(place, tmp_path_factory.mktemp("straight"))


def states(out):
  """What is saved of a run: it changes with every batch."""
  return {path: path.stat().st_mtime_ns for path in out.glob("begun/[01].*")}


@pytest.mark.slow
def test_ten_kills_change_no_bit(straight, place, tmp_path):
  out, chance, kills = tmp_path / "out", random.Random(0), 0
  for number in range(3 * NUM_KILLS):
    with open(tmp_path / f"{number}.log", "w") as log:
      process = start(place, out, log)
      before, deadline = states(out), time.monotonic() + 240
      # Once something more was saved, at any moment of a batch or a save.
      while states(out) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
      time.sleep(chance.uniform(0, 0.02))
      process.send_signal(signal.SIGKILL)
      code = process.wait()
    kills += code == -signal.SIGKILL
    if kills == NUM_KILLS or code == 0:
      break
  said = (tmp_path / f"{number}.log").read_text()
  assert kills == NUM_KILLS, f"{kills} kills only: {said}"
  assert not (out / "report.json").exists()
  with open(tmp_path / "last.log", "w") as log:
    assert start(place, out, log).wait(240) == 0
  for name in ("report.json", "samples.png", "curves.png"):
    assert (out / name).read_bytes() == (straight / name).read_bytes(), name


def of_two_processes(place, folder, *flags, **how):
  """The folder of a run of two processes, and what each of them said."""
  address, processes = together.free_address(), []
  logs = [folder / f"{i}.log" for i in range(2)]
  flags += ("--coordinator_address", address, "--num_processes", "2")
  for i in range(2):
    with open(logs[i], "w") as log:
      more = (*flags, "--process_id", str(i))
      run = start(place, folder / "out", log, *more, devices=2, **how)
      processes.append(run)
  try:
    codes = [process.wait(240) for process in processes]
  finally:
    for process in processes:
      process.kill()
  said = [log.read_text() for log in logs]
  assert codes == [0, 0], "\n".join(said)
  return folder / "out", said


SAME_MESH = ("--batch_size", "24")


@pytest.fixture(scope="module")
def alone(place, tmp_path_factory):
  """The folder of a run of one process that saved images and moments."""
  folder = tmp_path_factory.mktemp("alone")
  flags = (*SAME_MESH, "--save", "npz")
  finished(place, folder, *flags, notes=folder, devices=4)
  return folder


@pytest.fixture(scope="module")
def two(place, tmp_path_factory):
  """That of one of two processes, and what each of them said."""
  folder = tmp_path_factory.mktemp("two")
  flags = (*SAME_MESH, "--save", "array_record")
  _, said = of_two_processes(place, folder, *flags, notes=folder)
  return folder, said


def saved(path, chosen=None):
  """Images, all or those that are chosen, and their labels."""
  opened = sets.open_set(path)
  chosen = np.arange(len(opened)) if chosen is None else chosen
  images, labels = zip(*opened.rows(chosen), strict=True)
  return np.stack(images)[..., :1], np.array(labels)


def noted(folder, name):
  with np.load(folder / f"{name}.npz") as file:
    return file["mean"], file["covariance"]


def check_close(moments, expected, relative):
  """A covariance by its largest variance, as features are rounded by theirs."""
  (mean, covariance), (right, wide) = moments, expected
  np.testing.assert_allclose(mean, right, rtol=relative)
  np.testing.assert_allclose(
    covariance, wide, rtol=0, atol=relative * wide.max()
  )


@pytest.mark.slow
def test_two_processes_report_what_one_does(alone, two):
  reports = [
    json.loads((folder / "out" / "report.json").read_text())["results"]
    for folder in (two[0], alone)
  ]
  for one, other in zip(*reports, strict=True):
    assert one["settings"] == other["settings"]
    for name, value in other["scores"].items():
      # A distance, and a deviation, is what is left of larger numbers.
      size = abs(other["scores"][name.removesuffix("_deviation")])
      np.testing.assert_allclose(
        one["scores"][name], value, rtol=0, atol=1e-6 * size, err_msg=name
      )
  # Only the first writes, and shows progress.
  assert "images/s" in two[1][0]
  assert "images/s" not in two[1][1]


@pytest.mark.slow
def test_two_processes_have_the_moments_of_one(alone, two, place):
  """To a millionth; and as all rows at once have them, in float64."""
  real, _ = saved(place / "real.npz", sets.choose(120, 60))
  images = {"real_first": real}
  for number, which in enumerate(("first", "last")):
    where = two[0] / "out" / f"images_{number}"
    images[f"generated_{which}"] = saved(where)[0]
  for name, shown in images.items():
    exact = moments_of(stub.NETWORK(stub.NETWORK.params(), shown).pooled)
    exact = exact.mean, exact.covariance
    one = noted(alone, f"0_{name}")
    check_close(one, exact, 1e-6)
    for process in range(2):
      ours = noted(two[0], f"{process}_{name}")
      check_close(ours, one, 1e-6)
      check_close(ours, exact, 1e-6)


@pytest.mark.slow
def test_two_processes_save_the_images_of_one(alone, two):
  """Each once, with its label; as array_record, and as an archive."""
  for number in range(2):
    ours, labels = saved(two[0] / "out" / f"images_{number}")
    images, expected = saved(alone / "out" / f"images_{number}.npz")
    assert images.shape == (800, 8, 8, 1)
    np.testing.assert_array_equal(ours, images)
    assert len(np.unique(ours, axis=0)) == 800
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(labels, np.arange(800) % 10)


@pytest.mark.slow
def test_two_processes_save_one_archive(place, tmp_path):
  flags = ["--scores", "is", "--num_images", "40", "--guidance", "1"]
  out, _ = of_two_processes(place, tmp_path, *flags, "--save", "npz")
  files = {path.name for path in out.iterdir()}
  assert files == {"images.npz", "report.json", "samples.png", "speed.json"}
  with np.load(out / "images.npz") as file:
    assert file["arr_0"].shape == (40, 8, 8, 1)
    assert len(np.unique(file["arr_0"], axis=0)) == 40
    np.testing.assert_array_equal(file["arr_1"], np.arange(40) % 10)
