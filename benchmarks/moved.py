"""Whether a run that is killed goes on with another number of devices.

    python -m benchmarks.moved /tmp/moved --devices 2

1. A run is processes, one after the other, that train the same small model in
   one work directory by `marjax.train.loop`, each with so many devices: on GPUs
   by CUDA_VISIBLE_DEVICES, on CPUs by fake ones. All but the last are killed,
   kill -9, when a checkpoint is there.

       1          not killed            1 → 1      goes on as it was
       2 → 1      one device less       1 → 2      one device more

2. The state is split over all devices there are (fsdp), in float32 with full
   products, and the data is made by a rule.
3. Losses of all steps are compared with those of the first run, relative to
   them: above `--tolerance`, 1e-4, the exit code is 1. So is a run that ended
   before it could be killed. Whether the last parameters are the same bits is
   told, too; on CPUs they are, where the number of devices is.

What marjax needs for training must be installed: orbax, grain, clu.
"""

import dataclasses
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks import same_numbers
from benchmarks.same_numbers import MODELS, TOLERANCE
from experiments import programs, rows
from marjax.evaluate import environment
from marjax.experiment import MeshConfig

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 300
NUM_STEPS, CHECKPOINT_EVERY, KILLED_AT = 100, 20, 40


class MovedError(Exception):
  """A process did not do what it should; says what it said."""


def train(workdir: Path, num_devices: int, model: str) -> None:
  """One process of a run; at the end it leaves WORKDIR.npz and WORKDIR.json.

  Raises:
    ValueError: another number of devices is here.
  """
  import jax

  from marjax.train import loop

  if jax.device_count() != num_devices:
    raise ValueError(
      f"{jax.device_count()} devices are here; expected {num_devices}: see"
      " CUDA_VISIBLE_DEVICES, or JAX_NUM_CPU_DEVICES on CPUs."
    )
  experiment = same_numbers.experiment_of(MODELS[model])
  experiment = dataclasses.replace(
    experiment,
    mesh=MeshConfig("fsdp"),
    training=dataclasses.replace(
      experiment.training,
      num_steps=NUM_STEPS,
      log_every=1,
      checkpoint_every=CHECKPOINT_EVERY,
    ),
  )
  state = loop.train(experiment, workdir)
  params = {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
  }
  np.savez(workdir.with_suffix(".npz"), **params)
  rows.append(workdir.with_suffix(".json"), environment.device())


def environment_of(num_devices: int, cache: Path) -> dict[str, str]:
  """Variables of a process that has so many devices."""
  numbers = [str(number) for number in range(num_devices)]
  visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(numbers))
  return {
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    **os.environ,
    "CUDA_VISIBLE_DEVICES": ",".join(visible.split(",")[:num_devices]),
    "JAX_NUM_CPU_DEVICES": str(num_devices),
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
  }


def run(folder: Path, model: str, devices: Sequence[int]) -> Path:
  """The work directory of a run that had these devices in turn.

  Raises:
    MovedError: a process failed, or ended before it could be killed.
  """
  name = "_then_".join(map(str, devices))
  workdir = folder / name
  for index, count in enumerate(devices):
    log = folder / f"{name}_{index}.log"
    with open(log, "w") as file:
      process = subprocess.Popen(
        [
          *(sys.executable, "-m", "benchmarks.moved", str(workdir)),
          *("--train", str(count), "--model", model),
        ],
        cwd=ROOT,
        env=environment_of(count, folder / "programs"),
        stdout=file,
        stderr=subprocess.STDOUT,
      )
    is_last = index == len(devices) - 1
    try:
      if not is_last:
        _wait_for_checkpoint(process, workdir)
        process.kill()
      code = process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
      code = "none in time"
    finally:
      process.kill()
      process.wait()
    if code != (0 if is_last else -9):
      said = log.read_text().splitlines()[-1:] or ["nothing"]
      raise MovedError(
        f"a process of {name} with {count} devices ended with code {code};"
        f" expected {'0' if is_last else '-9, killed'}. It said: {said[0]}"
      )
  return workdir


def _wait_for_checkpoint(process: subprocess.Popen, workdir: Path) -> None:
  """Returns when the checkpoint is there, or the process ended."""
  deadline = time.monotonic() + PATIENCE_SECONDS
  wanted = workdir / "checkpoints" / str(KILLED_AT)
  while process.poll() is None and not wanted.exists():
    if time.monotonic() > deadline:
      raise subprocess.TimeoutExpired(process.args, PATIENCE_SECONDS)
    time.sleep(0.002)


def losses(workdir: Path) -> np.ndarray:
  """The loss of every step.

  Raises:
    MovedError: they are not of the steps 1, 2, 3, ...
  """
  table = rows.read(workdir / "metrics.jsonl")
  steps = [row["step"] for row in table]
  if steps != list(range(1, NUM_STEPS + 1)):
    raise MovedError(
      f"{workdir} has lines of the steps {steps}; expected 1 to {NUM_STEPS},"
      " each once."
    )
  return np.array([row["loss"] for row in table])


def final(workdir: Path) -> tuple[Mapping[str, np.ndarray], str]:
  """The last parameters by name, and the hash of their bits."""
  digest = hashlib.sha256()
  with np.load(workdir.with_suffix(".npz")) as file:
    params = dict(file)
  for name in sorted(params):
    digest.update(name.encode() + params[name].tobytes())
  return params, digest.hexdigest()[:16]


def compare(
  folder: Path, model: str, num_devices: int, tolerance: float
) -> list[rows.Row]:
  """A row per run that was killed, against the first, which was not.

  Raises:
    MovedError: see `run`.
  """
  straight = run(folder, model, [1])
  wanted, (params, digest) = losses(straight), final(straight)
  found = []
  for devices in ([1, 1], [num_devices, 1], [1, num_devices]):
    workdir = run(folder, model, devices)
    apart = same_numbers.of_each(losses(workdir), wanted)
    theirs, bits = final(workdir)
    row = {
      "devices": devices,
      "model": model,
      "killed_after": KILLED_AT,
      "num_steps": NUM_STEPS,
      "loss": apart,
      "last_loss": float(losses(workdir)[-1]),
      "parameters": same_numbers.of_vector(theirs, params),
      "hash": bits,
      "is_same_bits": bits == digest,
      "is_same": apart <= tolerance,
      "device": rows.read(workdir.with_suffix(".json"))[0],
      "versions": environment.versions(),
    }
    print(_sentence(row), flush=True)
    found.append(row)
  return found


def _sentence(row: rows.Row) -> str:
  devices = " then ".join(map(str, row["devices"]))
  bits = "the same bits" if row["is_same_bits"] else "other bits"
  return (
    f"{devices} devices, killed after step {row['killed_after']}: losses"
    f" {row['loss']:.2g} apart, parameters {row['parameters']:.2g}, {bits}"
    f" ({row['hash']}){'' if row['is_same'] else '; too far'}"
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Flags → runs; 1 where one went another way, 2 after a wrong flag."""
  parser = programs.parser(__spec__, __doc__)
  parser.add_argument("folder", type=Path, help="a new one, for all runs")
  parser.add_argument("--devices", type=int, default=2, help="the more of them")
  parser.add_argument(
    "--model", default="small", choices=list(MODELS), help="tiny for CPUs"
  )
  parser.add_argument("--tolerance", type=float, default=TOLERANCE)
  parser.add_argument("--out", type=Path, help="JSON lines to append to")
  parser.add_argument(
    "--train", type=int, help="be one process of the run in FOLDER, and train"
  )
  try:
    args = parser.parse_args(argv)
    folder = args.folder.absolute()
    if args.train:
      train(folder, args.train, args.model)
      return 0
    if args.devices < 2:
      raise ValueError(f"--devices is {args.devices}; expected 2 or more.")
    folder.mkdir(parents=True)
    found = compare(folder, args.model, args.devices, args.tolerance)
  except (ValueError, OSError) as error:
    print(f"benchmarks.moved: {error}", file=sys.stderr)
    return 2
  except MovedError as error:
    print(f"benchmarks.moved: {error}", file=sys.stderr)
    return 1
  for row in found if args.out else ():
    rows.append(args.out, row)
  return 0 if all(row["is_same"] for row in found) else 1


if __name__ == "__main__":
  sys.exit(main())
