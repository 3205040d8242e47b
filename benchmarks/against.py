"""Compares the speed of this checkout with that of another commit, in one run.

    python -m benchmarks.against HEAD~1 --sizes tiny,base --fail_over 1.1

1. The other commit is checked out into a temporary `git worktree`, which is
   removed at the end, also after Ctrl-C.
2. For every size and task, processes of both trees take turns, each with its
   own `python -m benchmarks.run` and the same flags:

       round    1        2        3
       tree     old new  old new  old new

   so that a machine that slows down slows down both. Each tree keeps its
   compiled programs for its later rounds.
3. The ratio is that of the medians, new over old: above 1 is slower. Its spread
   is that of the single rounds. A regression exceeds the limit in the medians
   and in the fastest rounds too, which a busy machine disturbs least.

Only flags that the other commit knows can be used; big sizes get a small batch
and few steps, unless flags say otherwise, to be bearable on two CPU cores.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments import programs

ROOT = Path(__file__).parents[1]
LIMIT = 1.1

PASSED_ON = {
  "batch_size": programs.count,
  "dtype": str,
  "repeats": programs.count,
  "num_ar_steps": programs.count,
  "num_diffusion_steps": programs.count,
  "guidance_scale": float,
}
"""Flags of `benchmarks.run` that both trees are called with."""

SEQUENTIAL = ("causal_large",)
BIG = ("base", "large", "huge", "guided_large", *SEQUENTIAL)
SHORT = {
  "batch_size": 4,
  "repeats": 1,
  "num_ar_steps": 2,
  "num_diffusion_steps": 4,
  "guidance_scale": 1.0,
}
"""What the big sizes are called with, unless flags say otherwise; SEQUENTIAL
ones draw one token a step, so their steps stay."""


@contextlib.contextmanager
def worktree(root: Path, commit: str, folder: Path) -> Iterator[Path]:
  """A checkout of a commit below a folder, removed at the end.

  Raises:
    ValueError: there is no such commit.
  """
  tree = folder / "old"
  if _git(root, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"):
    raise ValueError(
      f"there is no commit {commit!r} in {root}; expected a hash, a branch, or"
      " something like HEAD~1: fetch it first."
    )
  try:
    if _git(root, "worktree", "add", "--detach", str(tree), commit):
      raise ValueError(
        f"{commit!r} cannot be checked out below {folder}; expected room there"
        " and a repository that can be written: see git's message above."
      )
    yield tree
  finally:
    _git(root, "worktree", "remove", "--force", str(tree))
    _git(root, "worktree", "prune")


def _git(root: Path, *arguments: str) -> int:
  """Runs git; its output goes to stderr only where it failed."""
  done = subprocess.run(
    ["git", "-C", str(root), *arguments], capture_output=True, text=True
  )
  if done.returncode and done.stderr:
    print(done.stderr.strip(), file=sys.stderr)
  return done.returncode


def time_once(tree: Path, flags: Sequence[str], folder: Path) -> dict:
  """The row that a tree's own benchmark measures.

  Raises:
    ValueError: it failed.
  """
  out = folder / "row.jsonl"
  out.unlink(missing_ok=True)
  environment = {
    **os.environ,
    "PYTHONPATH": str(tree),
    "JAX_COMPILATION_CACHE_DIR": str(folder / f"cache-{tree.name}"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  command = [sys.executable, "-m", "benchmarks.run", *flags, "--out", str(out)]
  done = subprocess.run(
    command, cwd=tree, env=environment, capture_output=True, text=True
  )
  if done.returncode or not out.exists():
    said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise ValueError(
      f"benchmarks.run of {tree} failed ({said}); expected a commit that has"
      f" this benchmark and its flags: {' '.join(flags)}."
    )
  return json.loads(out.read_text().splitlines()[-1])


def compare(old: Sequence[dict], new: Sequence[dict]) -> dict:
  """Ratio of the median seconds, of the fastest, and extremes of a round."""
  before, after = ([row["seconds"] for row in rows] for rows in (old, new))
  single = [b / a for a, b in zip(before, after, strict=True)]
  fastest = [min(row["seconds_fastest"] for row in rows) for rows in (old, new)]
  return {
    "old_seconds": statistics.median(before),
    "new_seconds": statistics.median(after),
    "ratio": statistics.median(after) / statistics.median(before),
    "ratio_fastest": fastest[1] / fastest[0],
    "ratio_lowest": min(single),
    "ratio_highest": max(single),
    # The first round compiled, the others found it done.
    "old_compile_seconds": old[0]["compile_seconds"],
    "new_compile_seconds": new[0]["compile_seconds"],
  }


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
  """Flags → a line per comparison; 1 for a regression, 2 after an error."""
  previous = signal.signal(signal.SIGTERM, _interrupt)
  try:
    args = _flags(argv)
    limit = args.fail_over or LIMIT
    with tempfile.TemporaryDirectory(prefix="marjax-against-") as name:
      folder = Path(name)
      with worktree(root, args.commit, folder) as old:
        slower = _compare_all(args, old, root, folder, limit)
  except (ValueError, OSError) as error:
    print(f"benchmarks.against: {error}", file=sys.stderr)
    return 2
  finally:
    signal.signal(signal.SIGTERM, previous)
  return 1 if slower and args.fail_over else 0


def _compare_all(args, old: Path, new: Path, folder: Path, limit: float) -> int:
  """Prints every comparison; returns how many are over the limit."""
  slower = 0
  for size in args.sizes.split(","):
    for task in args.tasks.split(","):
      print(f"{task} {size} ...", end=" ", flush=True)
      flags = _flags_of(args, size, task)
      rows = {old: [], new: []}
      for _ in range(args.rounds):
        for tree, found in rows.items():
          found.append(time_once(tree, flags, folder))
          print(f"{found[-1]['seconds']:.4g}", end=" s, ", flush=True)
      found = compare(rows[old], rows[new])
      is_slower = min(found["ratio"], found["ratio_fastest"]) > limit
      slower += is_slower
      print(_sentence(found, is_slower), flush=True)
  return slower


def _sentence(found: dict, is_slower: bool) -> str:
  return (
    f"new / old: {found['ratio']:.3f}"
    f" ({found['ratio_lowest']:.3f} to {found['ratio_highest']:.3f},"
    f" fastest {found['ratio_fastest']:.3f});"
    f" compiled in {found['old_compile_seconds']:.1f} and"
    f" {found['new_compile_seconds']:.1f} s"
    + (": REGRESSION" if is_slower else "")
  )


def _flags_of(args, size: str, task: str) -> list[str]:
  """What both trees are called with."""
  short = SHORT if size in BIG else {}
  flags = ["--sizes", size, "--tasks", task]
  for name in PASSED_ON:
    value = getattr(args, name)
    is_fixed = name == "num_ar_steps" and size in SEQUENTIAL
    value = short.get(name) if value is None and not is_fixed else value
    if value is not None:
      flags += [f"--{name}", str(value)]
  return flags


def _interrupt(*_) -> None:
  raise KeyboardInterrupt


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = programs.parser(__spec__, __doc__)
  parser.add_argument("commit", help="to compare with, e.g. HEAD~1")
  parser.add_argument("--sizes", default="tiny,base", help="A,B of sizes.py")
  parser.add_argument(
    "--tasks", default="train,generate", help="train,generate"
  )
  parser.add_argument(
    "--rounds", type=programs.count, default=3, help="processes of each tree"
  )
  parser.add_argument(
    "--fail_over",
    type=float,
    help=f"exit with 1 where a ratio is higher (default: mark {LIMIT})",
  )
  for name, kind in PASSED_ON.items():
    parser.add_argument(f"--{name}", type=kind, help="as of benchmarks.run")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
