"""A work directory in a bucket is as good as one on this machine.

The bucket is tests/bucket.py; what talks to it are the libraries that
talk to a real one.
"""

import pathlib
import sys

import bucket as buckets
import jax.numpy as jnp
import numpy as np
import pytest
from train.shared import CONFIG, assert_same, losses, tiny

import marjax
from marjax import outputs
from marjax.cli.main import main
from marjax.release import workdir as workdirs
from marjax.train import loop, samples, writers
from marjax.train.checkpoint import Checkpointer

RUN = f"gs://{buckets.NAME}/some/run"
GENERATE = samples.Pipeline.generate
TRAINING = {"num_steps": 6, "log_every": 1, "checkpoint_every": 2}
TRAINING["sample_every"] = 3


def train(workdir):
  return loop.train(tiny(**TRAINING), workdir)


@pytest.fixture(scope="module")
def server():
  with buckets.serve() as bucket:
    yield bucket


@pytest.fixture
def bucket(server):
  """The bucket, empty."""
  server.objects, server.history = {}, []
  server.refuse, server.refusal = (lambda method, name: False), 403
  return server


@pytest.fixture(scope="module")
def local(quick, tmp_path_factory):
  """The same run on this machine: its folder and its last state."""
  workdir = tmp_path_factory.mktemp("local")
  return workdir, train(workdir)


@pytest.fixture(scope="module")
def moments(quick, server):
  """What was in the bucket after each change that a run in it made."""
  server.objects, server.history = {}, []
  flags = [f"--config.training.{key}={n}" for key, n in TRAINING.items()]
  assert main(["train", "--config", CONFIG, "--workdir", RUN, *flags]) == 0
  return server.history


def folder(step):
  return f"some/run/checkpoints/{step}/"


def unfinished(moments, step):
  """The last moment at which that step was not there yet."""
  is_there = [folder(step) + workdirs.MARKER in moment for moment in moments]
  return moments[is_there.index(True) - 1]


def test_a_run_leaves_the_same_files(local, moments, bucket):
  bucket.objects = moments[-1]
  here, there = local[0], outputs.path_of(RUN)
  pictures = [f"samples/{path.name}" for path in here.glob("samples/*")]
  assert len(pictures) == 2
  for name in ["config.json", *pictures]:
    assert (there / name).read_bytes() == (here / name).read_bytes()
  assert losses(there) == losses(here)
  assert len(bucket.names("some/run/events.out.tfevents.")) == 1
  assert workdirs.steps(there / "checkpoints") == [4, 6]


def test_a_step_counts_when_all_of_it_is_there(moments, bucket):
  newest, checkpoints = [0], outputs.path_of(RUN) / "checkpoints"
  for moment in moments:
    bucket.objects = moment
    newest.append(workdirs.latest_step(checkpoints) or 0)
    if newest[-1] != newest[-2] or moment is moments[-1]:
      assert workdirs.damage(checkpoints / str(newest[-1])) is None
  assert newest == sorted(newest)
  assert set(newest) == {0, 2, 4, 6}


def test_a_killed_run_ends_with_the_same_bits(local, moments, bucket):
  bucket.objects = unfinished(moments, 4)
  assert len(bucket.names(folder(4))) > 3
  state = train(RUN)
  assert_same(state, local[1])
  assert losses(outputs.path_of(RUN)) == losses(local[0])
  assert len(bucket.names("some/run/events.out.tfevents.")) == 2


def test_what_a_kill_left_is_deleted(moments, bucket):
  bucket.objects = unfinished(moments, 4)
  with Checkpointer(RUN, 2) as checkpoints:
    assert checkpoints.latest_step() == 2
    checkpoints.save(5, {"x": jnp.ones(3)}, {"step": 5})
  assert bucket.names(folder(4)) == []
  assert workdirs.latest_step(outputs.path_of(RUN) / "checkpoints") == 5


@pytest.mark.slow
def test_it_generates_the_same_images(local, moments, bucket, tmp_path):
  bucket.objects = moments[-1]
  out = tmp_path / "images.npy"
  flags = ["--labels", "0,1", "--seed", "3", "--out", str(out)]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(samples.Pipeline, "generate", GENERATE)
    assert main(["generate", "--checkpoint", RUN, *flags]) == 0
    expected = marjax.load(local[0]).generate([0, 1], seed=3)
  np.testing.assert_array_equal(np.load(out), expected)


def one_sentence(error, *parts):
  message = str(error.value)
  assert "\n" not in message
  for part in parts:
    assert part in message


@pytest.mark.slow
def test_a_save_that_is_refused_stops_the_run(local, moments, bucket):
  bucket.refuse = lambda method, name: (
    method == "PUT" and name.startswith(folder(4))
  )
  with pytest.raises(OSError, match="step 4 could not be written") as error:
    train(RUN)
  one_sentence(error, f"{RUN}/checkpoints", "step 2 is intact", "Forbidden")
  bucket.refuse = lambda method, name: False
  assert_same(train(RUN), local[1])


@pytest.mark.parametrize(
  "name", ["config.json", "metrics.jsonl", "events", "checkpoints"]
)
def test_each_file_that_is_refused_is_one_sentence(bucket, name):
  bucket.refuse = lambda method, path: method == "PUT" and f"/{name}" in path
  with pytest.raises(OSError, match="be written") as error:
    train(RUN)
  one_sentence(error, RUN, "Forbidden")


def test_a_picture_that_is_refused_stops_nothing(local, bucket, caplog):
  bucket.refuse = lambda method, path: method == "PUT" and "/samples" in path
  assert_same(train(RUN), local[1])
  assert "no picture of step 3 (OSError" in caplog.text


@pytest.mark.parametrize(
  ("status", "cause"), [(403, "Forbidden"), (400, "HttpError")]
)
def test_a_bucket_that_cannot_be_read_is_one_sentence(
  bucket, caplog, status, cause
):
  bucket.refuse, bucket.refusal = lambda method, path: method == "GET", status
  for act in (train, marjax.load):
    with pytest.raises(OSError, match="your credentials") as error:
      act(RUN)
    one_sentence(error, RUN, cause)
  assert not bucket.objects
  assert not [line for line in caplog.records if line.levelname == "ERROR"]


def test_what_is_not_there_is_one_sentence(bucket):
  with pytest.raises(FileNotFoundError, match=r"no config\.json"):
    marjax.load(RUN)
  with pytest.raises(OSError, match="cannot be written"):
    train("gs://no-such-bucket/run")


def test_a_damaged_file_is_one_sentence(moments, bucket):
  bucket.objects = dict(moments[-1])
  name = next(n for n in bucket.names(folder(6)) if "/d/" in n)
  bucket.objects[name] = (1, b"short")
  for act in (train, marjax.load):
    with pytest.raises(ValueError, match="is 5 bytes long"):
      act(RUN)


def test_a_config_of_another_run_is_refused(moments, bucket):
  bucket.objects = moments[-1]
  other = tiny("seed=5", **TRAINING)
  with pytest.raises(ValueError, match="seed is 0 there and 5 here"):
    loop.train(other, RUN)


def test_results_are_not_overwritten_unasked(bucket):
  # A folder of its own: a save that another test broke off may still be
  # writing to that of the runs.
  path = f"{RUN}_results/page.png"
  outputs.check_free([path])
  assert not [name for name in bucket.objects if "run_results" in name]
  outputs.write(path, b"one")
  with pytest.raises(FileExistsError, match="or remove that file"):
    outputs.write(path, b"two")
  with pytest.raises(FileExistsError, match="pass --overwrite"):
    outputs.check_free([path], overwrite=False)
  outputs.write(path, b"two", overwrite=True)
  assert bucket.objects["some/run_results/page.png"][1] == b"two"
  bucket.refuse = lambda method, name: method == "PUT"
  with pytest.raises(OSError, match="a bucket that you can write to"):
    outputs.check_free([f"{RUN}/other.png"])


def test_event_files_of_a_bucket_are_not_rewritten_for_ever(
  bucket, monkeypatch
):
  monkeypatch.setattr(writers, "MAX_REWRITTEN", 1000)
  writer = writers.TensorBoardWriter(outputs.path_of(RUN), 0)
  for step in range(30):
    writer.write_scalars(step, {"loss": 1.0, "name_of_a_curve": 2.0})
    writer.flush()
  writer.close()
  sizes = [len(content) for _, content in bucket.objects.values()]
  assert len(sizes) > 1
  assert max(sizes) < 1500


def test_other_schemes_are_one_sentence(monkeypatch):
  with pytest.raises(ValueError, match=r"s3://, which is not supported"):
    train("s3://bucket/run")
  with pytest.raises(ValueError, match=r"expected gs:// and as text"):
    marjax.load(pathlib.Path(RUN))
  with (
    pytest.raises(ValueError, match=r"is in a bucket, where this file"),
    outputs.replacing(RUN),
  ):
    pass


def test_gs_without_its_packages_is_one_sentence(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  assert main(["train", "--config", CONFIG, "--workdir", RUN]) == 2
  assert 'pip install "marjax[gcs]"' in capsys.readouterr().err
