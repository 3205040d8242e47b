"""The launch scripts: well-formed, and what they would have others run.

gcloud, xpk, srun and scontrol are replaced by programs that note how they were
called; where one is to run a shell somewhere else, it runs here.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "experiments/launch"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.is_file())
BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 240

# Notes its arguments, one call a line and in one write, as two may be noting
# theirs at once; then does what BODY says.
FAKE = """#!/usr/bin/env bash
call="$(printf '%q ' "$(basename "$0")" "$@")"
printf '%s\\n' "$call" >> "$CALLS"
BODY
"""


@pytest.fixture
def shell(tmp_path, monkeypatch):
  """Runs scripts with fake programs; a fake `marjax` is among them."""
  monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
  monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
  for name in ("CONFIG", "WORKDIR", "TPU_NAME", "ZONE", "CLUSTER", "TPU_TYPE"):
    monkeypatch.delenv(name, raising=False)
  (tmp_path / "bin").mkdir()
  shell = Shell(tmp_path)
  yield shell
  for process in shell.started:
    # Also what it started, should the test have failed.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_until(is_so):
  """Looks until it is so."""
  deadline = time.monotonic() + PATIENCE_SECONDS
  while not is_so():
    assert time.monotonic() < deadline
    time.sleep(0.05)


class Shell:
  """A folder of fake programs, and what they were called with."""

  def __init__(self, folder: Path):
    self.folder, self.started = folder, []

  def fake(self, name, body=""):
    path = self.folder / "bin" / name
    path.write_text(FAKE.replace("BODY", body))
    path.chmod(0o755)
    return path

  def calls(self):
    notes = self.folder / "calls"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [shlex.split(line) for line in lines]

  def start(self, script, *args, **variables):
    process = subprocess.Popen(
      ["bash", LAUNCH / script, *args],
      env={**os.environ, **variables},
      cwd=self.folder,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
    )
    self.started.append(process)
    return process

  def run(self, script, *args, **variables):
    process = self.start(script, *args, **variables)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, output

  def await_ready(self, count=1):
    """Waits until `count` programs of UNTIL_TOLD can be told to end."""
    notes = self.folder / "calls.ready"
    wait_until(
      lambda: notes.exists() and len(notes.read_text().splitlines()) == count
    )


# Runs until it is told to end; what it leaves says that it was.
UNTIL_TOLD = """trap 'echo told >> "$CALLS.told"; exit 0' TERM
echo ready >> "$CALLS.ready"
for i in $(seq 9999); do sleep 0.05; done; exit 9"""


def test_there_are_scripts():
  assert {path.name for path in SCRIPTS} == {
    "gke_xpk.sh",
    "slurm.sbatch",
    "tpu_pod.sh",
    "two_processes.sh",
  }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_tidy(path):
  check = [BIN / "shellcheck", "--severity=warning", path]
  found = subprocess.run(check, stdout=subprocess.PIPE, text=True)
  assert found.returncode == 0, found.stdout
  text = path.read_text()
  lines = text.splitlines()
  assert lines[0] == "#!/usr/bin/env bash"
  assert lines[1].startswith("# Trains ")
  assert "\nset -euo pipefail\n" in text
  assert max(map(len, lines)) <= 80
  assert os.access(path, os.X_OK)


@pytest.mark.parametrize(
  ("script", "variables", "message"),
  [
    ("two_processes.sh", {}, "expected CONFIG WORKDIR"),
    ("slurm.sbatch", {}, "set CONFIG to a config file"),
    ("slurm.sbatch", {"CONFIG": "c.py"}, "set WORKDIR to a folder that"),
    ("tpu_pod.sh", {}, "set TPU_NAME to the name"),
    ("tpu_pod.sh", {"TPU_NAME": "t"}, "set ZONE to the zone"),
    ("tpu_pod.sh", {"TPU_NAME": "t", "ZONE": "z"}, "expected install, start"),
    ("gke_xpk.sh", {}, "set CLUSTER to the name"),
    (
      "gke_xpk.sh",
      {"CLUSTER": "c", "ZONE": "z", "TPU_TYPE": "v6e-8"},
      "expected NAME CONFIG WORKDIR",
    ),
  ],
)
def test_what_is_missing_is_named(shell, script, variables, message):
  for name in ("gcloud", "xpk", "srun", "marjax"):
    shell.fake(name)
  code, output = shell.run(script, **variables)
  assert code != 0
  assert message in output
  assert not shell.calls()


# Every worker's home is this folder, and its shell is this machine's.
GCLOUD = """case $4 in
  scp) cp "$5" marjax.tar.gz ;;
  ssh) bash -c "${*: -1}" ;;
esac"""


def test_a_tpu_pod_is_installed_started_watched_and_stopped(shell):
  shell.fake("gcloud", GCLOUD)
  shell.fake("git", 'tar czf "$5" --files-from /dev/null')
  shell.fake("python3", "mkdir -p .venv/bin")
  slice_of = {"TPU_NAME": "slice", "ZONE": "zone", "PROJECT": "project"}
  target = ["slice", "--zone=zone", "--worker=all", "--project=project"]

  def tpu_pod(*args):
    return shell.run("tpu_pod.sh", *args, **slice_of)

  assert tpu_pod("install") == (0, "")
  gcloud = [call for call in shell.calls() if call[0] == "gcloud"]
  start = ["gcloud", "compute", "tpus", "tpu-vm"]
  assert gcloud[0][:5] == [*start, "scp"]
  assert gcloud[0][6:] == ["slice:marjax.tar.gz", *target[1:]]
  assert gcloud[1][:-1] == [*start, "ssh", *target, "--command"]
  installs = [call for call in shell.calls() if call[0] == "python3"]
  assert installs[-1][1:4] == ["-m", "uv", "pip"]
  assert installs[-1][-1] == ".[tpu,gcs]"

  made = shell.fake("marjax", UNTIL_TOLD)
  home = shell.folder / "marjax"
  shutil.copy(made, home / ".venv/bin/marjax")
  args = ["a config.py", "gs://b/run", "--config.name='two words'"]
  assert tpu_pod("start", *args) == (0, "")
  shell.await_ready()
  expected = ["--config", args[0], "--workdir", args[1], args[2]]
  assert shell.calls()[-1] == ["marjax", "train", *expected]
  assert ": running\n" in tpu_pod("status")[1]
  code, output = tpu_pod("start", *args)
  assert code == 1
  assert "running already; stop it first" in output
  assert tpu_pod("stop")[0] == 0
  wait_until(lambda: ": not running\n" in tpu_pod("status")[1])
  assert (shell.folder / "calls.told").exists()
  assert tpu_pod("stop")[0] != 0


def test_a_workload_of_gke(shell):
  shell.fake("git", "tar c -C / etc/hostname")
  shell.fake("xpk", 'ls "$(grep -o "script-dir=[^ ]*" "$CALLS" | cut -d= -f2)"')
  cluster = {"CLUSTER": "c", "ZONE": "z", "TPU_TYPE": "v6e-8", "SLICES": "2"}
  args = ["run-1", "c.py", "gs://b/run", "--config.name='two words'"]
  assert shell.run("gke_xpk.sh", *args, **cluster) == (0, "etc\n")
  call = next(call for call in shell.calls() if call[0] == "xpk")
  assert call[1:4] == ["workload", "create", "--workload=run-1"]
  sources = next(flag for flag in call if flag.startswith("--script-dir="))
  assert not Path(sources.partition("=")[2]).exists()
  assert {
    "--cluster=c",
    "--zone=z",
    "--tpu-type=v6e-8",
    "--num-slices=2",
    "--restart-on-exit-codes=2",
  } <= set(call)
  # What the pod is to run, run here in the shell that xpk writes for it.
  inside = call[-1].removeprefix("--command=")
  shell.fake("python")
  shell.fake("marjax")
  code = subprocess.run(["bash", "-c", f"({inside})"], cwd=ROOT).returncode
  assert code == 0
  assert shell.calls()[-1] == [
    *["marjax", "train", "--config", "c.py", "--workdir", "gs://b/run"],
    "--config.name='two words'",
  ]


@pytest.mark.parametrize("code", [0, 2])
def test_a_pod_ends_as_training_does(shell, code):
  shell.fake("marjax", f"exit {code}")
  assert shell.run("gke_xpk.sh", "in_pod", "marjax", "train")[0] == code


def test_a_pod_that_is_taken_away_is_started_again(shell):
  shell.fake("marjax", UNTIL_TOLD)
  pod = shell.start("gke_xpk.sh", "in_pod", "marjax", "train")
  shell.await_ready()
  pod.send_signal(signal.SIGTERM)
  pod.communicate(timeout=PATIENCE_SECONDS)
  assert pod.returncode == 42
  assert (shell.folder / "calls.told").exists()


JOB = {"CONFIG": "c.py", "WORKDIR": "/run", "SLURM_JOB_ID": "17"}


@pytest.mark.parametrize("code", [0, 3])
def test_a_slurm_job_ends_as_training_does(shell, code):
  shell.fake("srun", f"exit {code}")
  shell.fake("scontrol")
  args = ["--config.training.num_steps=7"]
  assert shell.run("slurm.sbatch", *args, **JOB) == (code, "")
  train = ["marjax", "train", "--config", "c.py", "--workdir", "/run", *args]
  assert shell.calls() == [["srun", "--kill-on-bad-exit=1", *train]]


def test_a_slurm_job_out_of_time_is_queued_again(shell):
  shell.fake("srun", UNTIL_TOLD)
  shell.fake("scontrol")
  job = shell.start("slurm.sbatch", **JOB)
  shell.await_ready()
  job.send_signal(signal.SIGTERM)
  output, _ = job.communicate(timeout=PATIENCE_SECONDS)
  assert job.returncode == 0, output
  assert shell.calls()[1:] == [["scontrol", "requeue", "17"]]
  assert (shell.folder / "calls.told").exists()


def test_both_processes_are_told_and_the_one_that_fails_counts(shell):
  shell.fake("marjax", UNTIL_TOLD.replace("exit 0", 'exit "${11}"'))
  both = shell.start("two_processes.sh", "c.py", "run", DEVICES="2")
  shell.await_ready(2)
  both.send_signal(signal.SIGTERM)
  both.communicate(timeout=PATIENCE_SECONDS)
  first, second = sorted(shell.calls())
  config = ["--config", "c.py", "--workdir", "run", "--coordinator_address"]
  assert first[:7] == second[:7] == ["marjax", "train", *config]
  assert first[7] == second[7]
  assert first[8:] == ["--num_processes", "2", "--process_id", "0"]
  assert second[8:] == ["--num_processes", "2", "--process_id", "1"]
  assert (shell.folder / "calls.told").read_text().split() == ["told"] * 2
  assert both.returncode == 1


@pytest.mark.slow
def test_two_processes_train(shell):
  code, output = shell.run(
    "two_processes.sh",
    str(ROOT / "tests/train/tiny.py"),
    "run",
    "--config.training.num_steps=4",
    MARJAX=str(BIN / "marjax"),
    PYTHONPATH=str(ROOT),
    DEVICES="2",
    # Only the first process would keep what it compiled, and then wait for the
    # other longer than Gloo allows.
    JAX_ENABLE_COMPILATION_CACHE="false",
  )
  assert code == 0, output
  assert "[0] " in output
  assert "[1] " in output
  assert (shell.folder / "run/checkpoints/4").is_dir()
