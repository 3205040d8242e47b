"""Verbs, flags, exit codes, and errors as one sentence."""

import dataclasses
import platform
import subprocess
import sys

import jax
import numpy as np
import pytest
import small
from PIL import Image

import marjax
from marjax.cli import generate, main, settings, train
from marjax.generate.settings import Settings
from marjax.head.reverse import ReverseSettings
from marjax.latents.pixels import PixelsConfig
from marjax.release.card import Card
from marjax.requests import kept_programs

GENERATE = ["generate", "--checkpoint", "x", "--labels", "0,1"]


@pytest.fixture
def fails(capsys):
  """Runs a command that must fail; returns its one line on stderr."""

  def run(*argv: str) -> str:
    try:
      code = main.main(argv)
    except SystemExit as stop:
      code = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    return lines[0]

  return run


class FakePipeline:
  """Draws images whose value is their label, and remembers its settings."""

  card = Card("fake", PixelsConfig(image_size=8, channels=1))

  def settings(self, asked):
    named = {None: Settings(), "cold": Settings(temperature=0.5)}
    return asked if isinstance(asked, Settings) else named[asked]

  def labels(self, labels):
    return np.array([-1 if label == "none" else int(label) for label in labels])

  def generate(self, labels, seed, settings, batch_size, progress):
    self.seed, self.asked = seed, settings
    values = np.array(labels).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (len(labels), 8, 8, 1))


@pytest.fixture
def pipeline(monkeypatch):
  fake = FakePipeline()
  monkeypatch.setattr(marjax, "load", lambda folder, dtype: fake)
  return fake


@pytest.mark.parametrize("argv", [[], *([verb] for verb in main.VERBS)])
def test_help_is_pleasant(argv, capsys):
  with pytest.raises(SystemExit) as stop:
    main.main([*argv, "--help"])
  shown = capsys.readouterr().out
  assert stop.value.code == 0
  assert shown.startswith(f"usage: {' '.join(['marjax', *argv])}")
  assert max(map(len, shown.splitlines())) <= 80


def test_python_dash_m_is_the_same_program():
  command = [sys.executable, "-m", "marjax", "--version"]
  shown = subprocess.run(command, check=True, capture_output=True, text=True)
  assert shown.stdout == f"marjax {main.__version__}\n"


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    ([], "VERB"),
    (["fly"], "invalid choice: 'fly'"),
    (["train"], "required: --config, --workdir"),
    ([*GENERATE, "--out", "a.png", "--temperatur", "1"], "--temperatur"),
    ([*GENERATE, "--out", "a.png", "--config.seed=1"], "not a flag of gener"),
    (
      ["generate", "--chekpoint", "x", "--labels", "0"],
      "unrecognized arguments: --chekpoint: did you mean --checkpoint?",
    ),
  ],
)
def test_wrong_flags_are_explained(argv, message, fails):
  line = fails(*argv)
  assert message in line
  assert "--help" in line


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--out", "a.jpg"], "--out is a.jpg; expected a name that ends in .png"),
    (["--out", "a.png", "--labels", "0,,1"], "--labels is '0,,1'; expected"),
    (["--out", "a.png", "--num_images", "0"], "--num_images is 0; expected"),
    (["--out", "a.png", "--temperature", "nan"], "temperature is nan; expect"),
    (
      ["--out", "a.png", "--head.sampler", "no"],
      "head.sampler is 'no'; expected one of",
    ),
    (["--out", "a.png", "--head.num_steps", "0"], "head.num_steps is 0"),
    (["--out", "a.png", "--head.final_num_steps", "1"], "final_num_steps is 1"),
  ],
)
def test_wrong_values_are_explained(flags, message, fails, monkeypatch):
  assert message in fails(*GENERATE, *flags)


def test_an_existing_result_is_kept(fails, tmp_path, pipeline):
  out = tmp_path / "a.npy"
  out.write_text("precious")
  line = fails(*GENERATE, "--out", str(out))
  assert f"{out} already exists" in line
  assert "--overwrite" in line
  assert out.read_text() == "precious"
  assert main.main([*GENERATE, "--out", str(out), "--overwrite"]) == 0
  assert np.load(out).shape == (2, 8, 8, 1)


def test_only_a_model_with_classes_needs_labels(pipeline, tmp_path, fails):
  out = str(tmp_path / "a.npz")
  argv = ["generate", "--checkpoint", "x", "--num_images", "2", "--out", out]
  assert main.main(argv) == 0
  assert np.load(out)["labels"].tolist() == [-1, -1]
  pipeline.card = small.card()
  line = fails(*argv, "--overwrite")
  assert "--labels is missing, and small has 10 classes; expected" in line


def test_an_edit_says_what_it_takes(pipeline, tmp_path, fails, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Image.new("L", (8, 8)).save("a.png")
  edit = ["edit", "--checkpoint", "x", "--image", "a.png", "--out", "b.png"]
  line = fails(*edit, "--mask", "top", "--labels", "a cat,a dog")
  assert "--labels is 'a cat,a dog'; expected one class" in line
  pipeline.labels = lambda label: [-1]
  line = fails(*edit, "--mask", "middle")
  assert ".png or .jpg, or one of left, right, top, bottom." in line


def test_flags_become_settings(pipeline, tmp_path):
  flags = [
    "--temperature",
    "1",
    "--head.sampler",
    "ddim",
    "--num_ar_steps",
    "4",
  ]
  flags += ["--head.final_num_steps", "5"]
  flags += ["--seed", "5", "--out", str(tmp_path / "a.npy")]
  assert main.main([*GENERATE, *flags]) == 0
  assert pipeline.seed == 5
  assert pipeline.asked == Settings(
    temperature=1.0,
    num_ar_steps=4,
    head=ReverseSettings(sampler="ddim", final_num_steps=5),
  )


def test_results_are_written_in_each_format(pipeline, tmp_path):
  labels = ["--labels", "3,none", "--num_images", "5"]
  for name in ("a.npz", "a.png"):
    assert main.main([*GENERATE, *labels, "--out", str(tmp_path / name)]) == 0
  with np.load(tmp_path / "a.npz") as file:
    assert file["labels"].tolist() == [3, -1, 3, -1, 3]
    assert file["images"].shape == (5, 8, 8, 1)
  with Image.open(tmp_path / "a.png") as picture:
    assert picture.width > 5 * 64
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.png"]


def test_every_setting_has_a_flag_with_help():
  described = settings.describe(Settings)
  assert set(described) == {
    field.name for field in dataclasses.fields(Settings)
  }
  assert all(described.values())


def test_labels_are_read():
  assert generate.read_labels("0, sea lion,none", None) == [
    *("0", "sea lion", "none")
  ]
  assert generate.read_labels("4,5", 3) == ["4", "5", "4"]
  with pytest.raises(ValueError, match="is 1, and there are 2 labels; expec"):
    generate.read_labels("4,5", 1)


def raising(error):
  def run(args):
    raise error

  return run


def test_a_defect_keeps_its_traceback(monkeypatch):
  def defect(args):
    np.zeros(2).reshape(3)

  monkeypatch.setattr(train, "run", defect)
  with pytest.raises(ValueError, match="cannot reshape"):
    main.main(["train", "--config", "a.py", "--workdir", "b"])


def test_an_interrupt_is_quiet(monkeypatch, capsys):
  monkeypatch.setattr(train, "run", raising(KeyboardInterrupt()))
  assert main.main(["train", "--config", "a.py", "--workdir", "b"]) == 130
  assert capsys.readouterr().err == "marjax: interrupted.\n"


def test_a_flag_of_scores_alone_is_refused(fails):
  for flag in ("--seed", "--num_draws"):  # 0 is a value too
    flags = ("--checkpoint", "a", "--out", "b", flag, "0")
    assert f"{flag} goes with --scores" in fails("evaluate", *flags)
  assert "with --scores" not in fails("evaluate", *flags[:4])


def test_a_missing_extra_is_named(fails, monkeypatch):
  # What `import sklearn.svm` raises, wherever sklearn was imported before.
  error = ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
  monkeypatch.setattr(train, "run", raising(error))
  line = fails("train", "--config", "a.py", "--workdir", "b")
  assert 'sklearn is not installed; install it with pip install "mar' in line


def test_a_missing_module_of_our_own_is_a_defect(monkeypatch):
  error = ModuleNotFoundError("No module named 'marjax.x'", name="marjax.x")
  monkeypatch.setattr(train, "run", raising(error))
  with pytest.raises(ModuleNotFoundError):
    main.main(["train", "--config", "a.py", "--workdir", "b"])


def test_a_missing_file_is_named(tmp_path):
  missing = tmp_path / "absent"
  with pytest.raises(FileNotFoundError) as caught:
    missing.read_text()
  assert main.sentence(caught.value) == f"{missing}: no such file or directory."


def test_programs_are_kept_where_nothing_else_was_said(monkeypatch, tmp_path):
  monkeypatch.setenv("MARJAX_PROGRAMS", str(tmp_path))
  before = jax.config.jax_compilation_cache_dir
  try:
    kept_programs.keep_programs()
    assert jax.config.jax_compilation_cache_dir == before
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("MARJAX_PROGRAMS", "")
    kept_programs.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv("MARJAX_PROGRAMS", str(tmp_path))
    kept_programs.keep_programs()
    found = jax.config.jax_compilation_cache_dir
    assert found == str(tmp_path / platform.node())
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
