"""Who else is there, what all must agree on, arrays across processes."""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from marjax.parallel import hosts
from marjax.parallel.mesh import make_mesh
from marjax.parallel.rules import batch_sharding
from marjax.version import __version__

SLURM = {
  "SLURM_NTASKS": "2",
  "SLURM_PROCID": "0",
  "SLURM_STEP_NODELIST": "node[1-2]",
}


@pytest.mark.parametrize(
  ("environment", "expected"),
  [
    ({}, False),
    (SLURM, True),
    (SLURM | {"SLURM_NTASKS": "1"}, False),
    # A shell inside of an allocation is no task of it.
    ({"SLURM_NTASKS": "2"}, False),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
    ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}, True),
    ({"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "a"}, True),
    ({"MEGASCALE_NUM_SLICES": "1"}, False),
    (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False),
  ],
)
def test_the_environment_says_whether_there_are_others(environment, expected):
  assert hosts.is_announced(environment) == expected


def test_a_number_of_processes_that_is_none_is_told():
  with pytest.raises(ValueError, match="SLURM_NTASKS is 'x' in the"):
    hosts.is_announced(SLURM | {"SLURM_NTASKS": "x"})


def test_what_is_left_over_in_a_shell_counts_for_nothing(monkeypatch):
  for name, value in (SLURM | {"OMPI_COMM_WORLD_SIZE": "4"}).items():
    monkeypatch.setenv(name, value)
  for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(hosts, "_is_typed", lambda: True)
  assert not hosts.is_announced()
  monkeypatch.setattr(hosts, "_is_typed", lambda: False)
  assert hosts.is_announced()


def test_the_metadata_server_is_asked_on_tpus_only():
  assert not hosts.may_be_pod({"TPU_SKIP_MDS_QUERY": "1"})
  assert hosts.may_be_pod({})


@pytest.fixture
def initialized(monkeypatch):
  """What jax.distributed.initialize was given; it does nothing."""
  calls = []

  def initialize(*args, **kwargs):
    calls.append((args, kwargs))

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  for name in ("TPU_WORKER_HOSTNAMES", "SLURM_NTASKS"):
    monkeypatch.delenv(name, raising=False)
  return calls


def test_one_process_meets_nobody(initialized):
  with hosts.joined():
    pass
  with hosts.joined("localhost:1", 1, 0):
    pass
  assert initialized == []


def test_what_answers_abort_is_put_back(initialized, monkeypatch):
  before = hosts._answer_abort(None)
  try:
    with hosts.joined("localhost:1", 2, 1):
      assert hosts._answer_abort(hosts._answer_abort(None)) is None
      assert hosts._answer_abort(None) not in (None, before)
    assert hosts._answer_abort(None) is None
    monkeypatch.setattr(jax.distributed, "initialize", _taken)
    with pytest.raises(ConnectionError), hosts.joined("localhost:1", 2, 1):
      pass
    assert hosts._answer_abort(None) is None
  finally:
    hosts._answer_abort(before)


def _taken(*args, **kwargs):
  raise ConnectionError("taken")


def test_flags_need_no_second_opinion(initialized):
  with hosts.joined("localhost:1", 2, 1):
    pass
  ((args, kwargs),) = initialized
  assert args == ("localhost:1", 2, 1)
  assert kwargs["cluster_detection_method"] == "deactivate"
  assert kwargs["heartbeat_timeout_seconds"] <= 60


def test_jax_finds_the_processes_of_a_cluster(initialized, monkeypatch):
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0,host-1")
  with hosts.joined():
    pass
  ((args, kwargs),) = initialized
  assert args == (None, None, None)
  assert kwargs["cluster_detection_method"] is None


def test_a_tpu_without_a_metadata_server_is_alone(initialized, monkeypatch):
  def initialize(*args, **kwargs):
    raise ConnectionError("no metadata server")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  monkeypatch.setattr(hosts, "may_be_pod", lambda: True)
  with hosts.joined():
    pass
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0,host-1")
  with pytest.raises(ConnectionError, match="metadata"), hosts.joined():
    pass


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("localhost:1", 2, None), "go together"),
    ((None, None, 0), "go together"),
    (("localhost", 2, 0), "expected HOST:PORT"),
    ((":80", 2, 0), "expected HOST:PORT"),
    (("localhost:http", 2, 0), "expected HOST:PORT"),
    (("localhost:1", 2, 2), "expected 0 to 1"),
    (("localhost:1", 2, -1), "expected 0 to 1"),
  ],
)
def test_wrong_flags_are_one_sentence(flags, message):
  with pytest.raises(ValueError, match=message), hosts.joined(*flags):
    pass


@pytest.fixture
def others(monkeypatch):
  """Makes this process one of two; sets what the other says."""

  def say(settings, **versions):
    said = {
      "marjax.__version__": __version__,
      "jax.__version__": jax.__version__,
    }
    theirs = json.dumps(said | settings | versions)
    monkeypatch.setattr(hosts, "_gather", lambda mine: [mine, theirs])

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  return say


def test_the_first_difference_is_named_with_both_values(others):
  others({"seed": 1, "training.batch_size": 8})
  with pytest.raises(
    ValueError, match=r"batch_size is 16 in process 0 and 8 in process 1"
  ):
    hosts.agree({"seed": 1, "training.batch_size": 16})


def test_a_key_of_one_process_only_is_a_difference(others):
  others({"seed": 1, "new": True})
  with pytest.raises(ValueError, match="new is None in process 0 and True"):
    hosts.agree({"seed": 1})


def test_versions_must_agree_too(others):
  others({}, **{"marjax.__version__": "0.0.1"})
  with pytest.raises(ValueError, match=r"__version__ is .* and '0.0.1'"):
    hosts.agree({})


def test_what_belongs_to_a_host_may_differ(others):
  others({"data.data_dir": "/b", "data.num_threads": 8, "seed": 0})
  hosts.agree({"data.data_dir": "/a", "data.num_threads": 2, "seed": 0})


def test_gathered_texts_keep_their_lengths(monkeypatch):
  def allgather(array):
    if array.dtype == np.int32:
      return np.stack([array, np.int32(9)])
    assert array.shape == (9,)
    return np.stack([array, np.frombuffer(b"the other", np.uint8)])

  monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
  assert hosts._gather("größe") == ["größe", "the other"]


def test_spread_and_fetch_are_inverse():
  sharding = batch_sharding(make_mesh())
  array = np.arange(16.0).reshape(8, 2)
  placed = hosts.spread(array, sharding)
  assert placed.sharding == sharding
  np.testing.assert_array_equal(hosts.fetch(placed), array)


def start(code, address, process):
  return subprocess.run(
    [
      *(sys.executable, "-c"),
      "from marjax.cli.main import main\nfrom marjax.parallel import hosts\n"
      f"{code}\nraise SystemExit(main())",
      *("train", "--config", "tests/train/tiny.py", "--workdir", "/nowhere"),
      *("--coordinator_address", address, "--num_processes", "2"),
      *("--process_id", str(process)),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


@pytest.fixture
def port():
  """One of IPv6 and IPv4 that this process holds."""
  with socket.create_server(
    ("", 0), family=socket.AF_INET6, dualstack_ipv6=True
  ) as server:
    yield server.getsockname()[1]


def test_a_coordinator_that_is_not_there_is_one_sentence(port):
  done = start("hosts.MEET_SECONDS = 2", f"localhost:{port}", 1)
  assert done.returncode == 2
  last = done.stderr.splitlines()[-1]
  assert last.startswith("marjax: 2 processes did not meet at localhost:")
  assert "within 2 s" in last


def test_a_port_that_is_taken_is_one_sentence(port):
  done = start("", f"localhost:{port}", 0)
  assert done.returncode == 2
  assert "choose a free one" in done.stderr.splitlines()[-1]
