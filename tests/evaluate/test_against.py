"""Two commits are compared in turns, and nothing is left behind."""

import json
import subprocess
import textwrap

import pytest

from benchmarks import against

# A benchmark that is quick: its seconds are those that its commit says.
STUB = """
import json, pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
seconds = json.loads(pathlib.Path("seconds.json").read_text())
row = {"seconds": seconds[0], "seconds_fastest": seconds[1],
       "compile_seconds": 2.0, "flags": flags}
with open(flags["--out"], "a") as file:
  file.write(json.dumps(row) + "\\n")
"""


def git(folder, *arguments):
  who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
  done = subprocess.run(
    ["git", "-C", str(folder), *who, *arguments],
    check=True,
    capture_output=True,
    text=True,
  )
  return done.stdout


@pytest.fixture
def root(tmp_path):
  """A repository whose first commit takes 1 s and whose second takes 1.05."""
  folder = tmp_path / "repository"
  (folder / "benchmarks").mkdir(parents=True)
  (folder / "benchmarks" / "run.py").write_text(textwrap.dedent(STUB))
  git(tmp_path, "init", "-q", str(folder))
  for seconds in ([1.0, 0.9], [1.05, 0.95]):
    (folder / "seconds.json").write_text(json.dumps(seconds))
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", f"takes {seconds}")
  return folder


def trees(root):
  return git(root, "worktree", "list").splitlines()


def compare(root, *flags):
  return against.main(["HEAD~1", "--sizes", "tiny", *flags], root)


def test_the_ratio_is_new_over_old(root, capsys):
  assert compare(root, "--rounds", "2", "--fail_over", "1.1") == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(" ...")[0] for line in lines] == [
    "train tiny",
    "generate tiny",
  ]
  assert "1 s, 1.05 s, 1 s, 1.05 s, new / old: 1.050" in lines[0]
  assert "REGRESSION" not in lines[0]
  assert len(trees(root)) == 1


def test_a_regression_is_marked_and_fails_only_if_asked(root, capsys):
  # What is not committed is measured too.
  (root / "seconds.json").write_text("[1.2, 1.1]")
  assert compare(root, "--rounds", "1", "--tasks", "train") == 0
  assert "new / old: 1.200" in capsys.readouterr().out
  flags = ["--rounds", "1", "--tasks", "train", "--fail_over"]
  assert compare(root, *flags, "1.1") == 1
  assert "REGRESSION" in capsys.readouterr().out
  assert compare(root, *flags, "1.3") == 0
  # A busy machine slows down the median, but not the fastest round.
  (root / "seconds.json").write_text("[1.2, 0.9]")
  assert compare(root, *flags, "1.1") == 0


def test_rounds_are_compared_one_by_one():
  def rows(*seconds):
    return [
      {"seconds": s, "seconds_fastest": s, "compile_seconds": 9 * s}
      for s in seconds
    ]

  found = against.compare(rows(1.0, 2.0, 4.0), rows(2.0, 2.0, 3.0))
  assert found["ratio"] == 1.0
  assert found["ratio_fastest"] == 2.0
  assert (found["ratio_lowest"], found["ratio_highest"]) == (0.75, 2.0)
  assert (found["old_compile_seconds"], found["new_compile_seconds"]) == (9, 18)


def test_big_sizes_are_timed_with_little_work(root, monkeypatch):
  seen = []

  def time_once(tree, flags, folder):
    seen.append(" ".join(flags))
    return {"seconds": 1.0, "seconds_fastest": 1.0, "compile_seconds": 1.0}

  monkeypatch.setattr(against, "time_once", time_once)
  flags = ["--rounds", "1", "--tasks", "train"]
  assert against.main(["HEAD", "--sizes", "tiny,base", *flags], root) == 0
  assert set(seen) == {
    "--sizes tiny --tasks train",
    "--sizes base --tasks train --batch_size 4 --repeats 1 --num_ar_steps 2"
    " --num_diffusion_steps 4 --guidance_scale 1.0",
  }
  more = ["--batch_size", "8", "--dtype", "bfloat16"]
  against.main(["HEAD", "--sizes", "base", *flags, *more], root)
  assert "--batch_size 8 --dtype bfloat16 --repeats 1" in seen[-1]
  # One token a step: fewer steps are none of its own.
  against.main(["HEAD", "--sizes", "causal_large", *flags], root)
  assert "--batch_size 4" in seen[-1]
  assert "num_ar_steps" not in seen[-1]


def test_interrupting_removes_the_other_tree(root, monkeypatch):
  def time_once(tree, flags, folder):
    assert len(trees(root)) == 2
    raise KeyboardInterrupt

  monkeypatch.setattr(against, "time_once", time_once)
  with pytest.raises(KeyboardInterrupt):
    compare(root)
  assert len(trees(root)) == 1


def test_what_cannot_be_compared_is_one_sentence(root, capsys):
  assert against.main(["no-such-thing"], root) == 2
  assert "there is no commit 'no-such-thing'" in capsys.readouterr().err
  assert compare(root, "--bogus") == 2
  assert "unrecognized arguments: --bogus" in capsys.readouterr().err
  assert compare(root, "--rounds", "0") == 2
  assert (
    "--rounds: it is '0'; expected a whole number, 1" in capsys.readouterr().err
  )
  (root / "benchmarks" / "run.py").write_text("raise SystemExit('no flag')")
  assert compare(root) == 2
  assert "failed (no flag); expected a commit" in capsys.readouterr().err
  assert len(trees(root)) == 1
