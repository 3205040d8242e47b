"""Errors of every origin as one sentence: bounded, and fit for a terminal."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from marjax import outputs
from marjax.cli import generate, main, train
from marjax.requests.kept_programs import keep_programs

ROOT = Path(__file__).parents[2]
ARGV = ["train", "--config", "a.py", "--workdir", "b"]


@pytest.mark.parametrize(
  ("error", "words"),
  [
    (MemoryError("1 TB"), "memory is full (1 TB)"),
    (RecursionError(), "nested too deeply"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "should be UTF-8"),
    (OSError(28, "No space left on device"), "no space left on device"),
    (PermissionError(13, "Permission denied", "f"), "f: permission denied"),
    (
      jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"),
      "device's memory is full (RESOURCE_EXHAUSTED: Out of memory)",
    ),
    (OSError(f"{'a' * 20_000}\x1b[31m\n{'b' * 20_000}"), "aaa ... bbb"),
    (OSError("a\x1b[31m\x07b\nc"), r"a\x1b[31m\x07b c"),
    (ValueError("one\n  two"), "marjax: one two\n"),
    (FloatingPointError("one two"), "marjax: one two\n"),
  ],
)
def test_an_error_is_one_sentence(error, words, monkeypatch, capsys):
  def run(args):
    raise error

  monkeypatch.setattr(train, "run", run)
  # These are told only where a module of ours raised them.
  monkeypatch.setitem(globals(), "__name__", "marjax.pretended")
  assert main.main(ARGV) == 2
  text = capsys.readouterr().err
  assert words in text
  assert text.endswith("\n")
  assert text[:-1].isprintable()
  assert len(text) <= outputs.LONGEST_MESSAGE + len("marjax: \n")
  with pytest.raises(type(error)):
    main.main([*ARGV, "--debug"])


def test_names_in_the_log_do_not_drive_a_terminal():
  record = logging.makeLogRecord({"msg": "a %s\nb", "args": ("\x1b[2J",)})
  assert main._Formatter().format(record) == "a \\x1b[2J\nb"


@pytest.mark.parametrize("count", [0, 10**9])
def test_images_that_no_file_holds(count):
  with pytest.raises(ValueError, match=r"--num_images is .*; expected 1 to"):
    generate.read_labels("0", count)


def marjax(code, *argv, cwd, **variables):
  """Runs code before the command, in a process of its own."""
  return subprocess.run(
    [sys.executable, "-c", f"import os, sys\n{code}\n{MAIN}", *argv],
    cwd=cwd,
    env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
    capture_output=True,
    text=True,
  )


MAIN = "from marjax.__main__ import main\nsys.exit(main())"


def test_a_folder_that_was_removed(tmp_path):
  code = f"os.mkdir({str(tmp_path / 'x')!r}); os.chdir({str(tmp_path / 'x')!r})"
  code += "; os.rmdir(os.getcwd())"
  done = marjax(code, "convert", "x", "--out", "y", cwd=tmp_path)
  assert done.returncode == 2
  assert done.stderr.startswith(
    "marjax: the folder in which marjax was started"
  )


def test_output_that_nobody_reads(tmp_path):
  code = "r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n"
  code += "from marjax.cli import main as m\n"
  code += "m.VERBS['convert'].run = lambda args: print('report')"
  done = marjax(code, "convert", "x", "--out", "y", cwd=tmp_path)
  assert (done.returncode, done.stderr) == (141, "")


def test_no_place_to_keep_programs(tmp_path, monkeypatch, caplog):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("MARJAX_PROGRAMS", str(tmp_path / "file" / "x"))
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  try:
    with caplog.at_level(logging.INFO):
      keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
  assert "compiled programs are not kept" in caplog.text
