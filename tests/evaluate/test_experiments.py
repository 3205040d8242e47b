"""Experiments resume, skip what they have, and print what was measured."""

import json
import sys
import threading
import types

import numpy as np
import pytest

from benchmarks import sizes
from experiments import (
  emoji,
  finetune,
  heads,
  heads_tables,
  markdown,
  programs,
  rows,
  samplers,
  table1,
  tables,
)
from marjax.cli import interrupts
from marjax.evaluate import environment
from marjax.parallel.mesh import make_mesh
from marjax.pipeline import Pipeline
from marjax.train import loop

SCORES = {
  "label_accuracy": 0.9764,
  "real_test_accuracy": 0.9867,
  "frechet_ratio": 1.7049,
  "near_copy_rate": 0.0,
}


@pytest.fixture
def pipe():
  params = {"weights": np.arange(6, dtype=np.float32)}
  return Pipeline.of_experiment(
    sizes.experiment("digits"), params, make_mesh(), step=300
  )


def test_rows_survive_a_kill_in_the_middle_of_a_line(tmp_path):
  path = tmp_path / "new" / "rows.jsonl"
  assert rows.read(path) == []
  rows.append(path, {"a": 1})
  with open(path, "a") as file:
    file.write('{"a": 2, "b"')
  assert rows.read(path) == [{"a": 1}]
  rows.append(path, {"a": 3})
  assert rows.read(path) == [{"a": 1}, {"a": 3}]
  assert path.read_text() == '{"a": 1}\n{"a": 3}\n'
  path.write_text('{"a": 1}\n{"a": 3}')  # as an editor leaves it
  rows.append(path, {"a": 4})
  assert [row["a"] for row in rows.read(path)] == [1, 3, 4]


def test_a_row_waits_for_who_has_the_file(tmp_path):
  path = tmp_path / "rows.jsonl"
  other = threading.Thread(target=rows.append, args=[path, {"a": 2}])
  with rows.locked(path) as file:
    other.start()
    other.join(0.3)
    assert other.is_alive()
    file.write(b'{"a": 1}\n')
  other.join()
  assert rows.read(path) == [{"a": 1}, {"a": 2}]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text('{"a": 1}\nnot json\n{"a": 2}\n')
  with pytest.raises(ValueError, match=r"rows\.jsonl:2 is no JSON object"):
    rows.read(path)


def test_find_compares_all_that_was_asked_for():
  table = [{"a": 1, "b": 2}, {"a": 1, "b": 3}]
  assert rows.find(table, a=1, b=3) == table[1]
  assert rows.find(table, a=2) is None
  assert rows.find(table, c=1) is None


def test_variants_differ_and_keep_the_checkpoints_ar_steps(pipe):
  settings = {
    samplers.settings_of(pipe, variant)
    for variant in samplers.VARIANTS.values()
  }
  assert len(settings) == len(samplers.VARIANTS)
  assert {one.num_ar_steps for one in settings} == {16}
  for name, variant in samplers.VARIANTS.items():
    full = samplers.settings_of(pipe, variant)
    assert f"{full.head.num_steps} steps" in name
    assert (full.head.sampler == "ddim") == name.startswith("DDIM")
    assert (full.head.start == 999) == ("published" in name)
    assert (full.temperature == 0.9) == ("temperature 0.9" in name)
    assert (full.guidance_scale == 2.0) == ("guidance 2" in name)


def test_samplers_measure_only_what_is_missing(
  pipe, tmp_path, monkeypatch, capsys
):
  measured = []

  def measure(pipe, real, settings, num_images, seed):
    if len(measured) == 5:
      raise KeyboardInterrupt
    measured.append(settings)
    return {**SCORES, "seconds": 9.96}

  monkeypatch.setattr(samplers, "load", lambda directory: pipe)
  monkeypatch.setattr(samplers.run, "load_real", lambda data: None)
  monkeypatch.setattr(samplers, "measure", measure)
  out = tmp_path / "samplers.jsonl"
  flags = ["--checkpoint", "work", "--out", str(out)]
  with pytest.raises(KeyboardInterrupt):
    samplers.main(flags)
  assert len(rows.read(out)) == 5
  measured[:] = measured[:0]
  monkeypatch.setattr(
    samplers, "measure", lambda *args: {**SCORES, "seconds": 1.0}
  )
  samplers.main(flags)
  found = rows.read(out)
  assert [row["name"] for row in found] == list(samplers.VARIANTS)
  assert [row["seconds"] for row in found[:6]] == [9.96] * 5 + [1.0]
  assert capsys.readouterr().out.count("already there") == 5
  # Other parameters are another experiment.
  pipe.params["weights"][0] = 7
  samplers.main(flags)
  assert len(rows.read(out)) == 2 * len(samplers.VARIANTS)


def test_a_wrong_checkpoint_is_one_sentence(tmp_path, capsys):
  assert samplers.main(["--checkpoint", str(tmp_path)]) == 2
  assert "is an empty folder; expected a released" in capsys.readouterr().err


def test_every_head_has_rows_once(tmp_path, monkeypatch, pipe):
  trained, changed = [], []

  def train(experiment, workdir):
    trained.append(workdir.name)
    assert experiment.seed == experiment.data.seed == int(workdir.name[-1])
    assert experiment.model.head.kind == workdir.name[:-2]

  def measure(pipe, real, settings, num_images, seed):
    changed.append(settings)
    return SCORES

  monkeypatch.setattr(programs, "train", train)
  monkeypatch.setattr(heads, "load", lambda workdir: of_kind[workdir.name[:-2]])
  monkeypatch.setattr(heads.run, "load_real", lambda data: None)
  monkeypatch.setattr(heads.samplers, "measure", measure)
  of_kind = {
    kind: Pipeline.of_experiment(
      heads.configs.load(f"{heads.CONFIG}{variant}"), {}, make_mesh(), step=300
    )
    for kind, variant in heads.VARIANTS.items()
  }
  flags = ["--runs", str(tmp_path), "--num_runs=2"]
  flags += ["--out", str(tmp_path / "heads.jsonl")]
  for _ in range(2):
    assert heads.main(flags) == 0
  kinds = ("diffusion", "flow", "regression")
  # A training that is whole goes on with nothing.
  assert trained == 2 * [f"{kind}_{n}" for n in (0, 1) for kind in kinds]
  assert len(changed) == 2 * 5
  table = heads_tables.grouped(rows.read(tmp_path / "heads.jsonl"))
  lines = markdown.table(heads_tables.columns(), table).splitlines()
  assert len(lines) == 2 + 5
  assert lines[-1].startswith("| regression | 1 | 0.976 ± 0.000 |")
  # Who trains one again has the new one's scores in place of the old ones.
  again = rows.read(tmp_path / "heads.jsonl")
  again = [row | {"label_accuracy": 0.5, "parameters": 0} for row in again]
  for row in again:
    row["settings"] = row["settings"] | {"guidance_scale": 7.0}
  both = [*rows.read(tmp_path / "heads.jsonl"), *again]
  assert heads_tables.grouped(both) == heads_tables.grouped(again)


def row_of(**more):
  return {
    **SCORES,
    "num_images": 1000,
    "seed": 0,
    "steps_trained": 4500,
    "seconds": 1.26,
    "device": environment.device(),
    "versions": environment.versions(),
    **more,
  }


def test_tables_have_a_line_per_row(tmp_path):
  assert tables.tables(tmp_path, tmp_path / "none.jsonl") == ""
  for name in ("published", "late"):
    rows.append(tmp_path / "samplers.jsonl", row_of(name=name))
  text = tables.tables(tmp_path, tmp_path / "none.jsonl")
  assert "| published | 0.976 | 1.70 | 0.000 | 1.3 |\n" in text
  assert "1000 digits, seed 0, 4500 steps of training" in text
  widths = {line.count("|") for line in text.splitlines() if "|" in line}
  assert widths == {6}


def test_benchmark_rows_make_a_table(tmp_path):
  row = row_of(
    task="train",
    size="base",
    parameters={"all": 207_900_000},
    batch_size=32,
    dtype="bfloat16",
    images_per_second=1234.5,
    compile_seconds=61.23,
    memory_bytes=11_800_000_000,
    date="2026-11-24",
  )
  (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
  text = tables.tables(tmp_path / "none", tmp_path / "rows.jsonl")
  assert (
    "| MAR-B | 32 | bfloat16 | 1260 | – | 1230 | 0.81 | – | – | 11.8 |" in text
  )


def test_committed_tables_are_those_of_the_committed_rows():
  text = tables.tables(tables.RESULTS, tables.BENCHMARKS)
  path = tables.RESULTS / "tables.md"
  committed = path.read_text() if path.exists() else ""
  assert committed == text, "run python -m experiments.tables --write"


def test_a_run_that_was_stopped_is_not_scored(tmp_path, monkeypatch):
  """SIGTERM ends a training early, and without an error."""
  experiment = heads.configs.load(heads.CONFIG)
  wanted = experiment.training.num_steps
  for step in (wanted, wanted - 1):
    state = types.SimpleNamespace(step=np.int32(step))
    monkeypatch.setattr(loop, "train", lambda *_, state=state: state)
    if step == wanted:
      programs.train(experiment, tmp_path)
    else:
      with pytest.raises(SystemExit, match=f"at step {step} of {wanted}; the"):
        programs.train(experiment, tmp_path)


@pytest.mark.parametrize("name", ["matplotlib", "of_ours"])
def test_what_is_to_be_installed_is_said(name, monkeypatch, capsys):
  def main(argv):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

  spec = types.SimpleNamespace(name="experiments.some")
  monkeypatch.setitem(main.__globals__, "__spec__", spec)
  if name == "of_ours":  # a defect, whose traceback is needed
    with pytest.raises(ModuleNotFoundError):
      programs.program(main)([])
    return
  assert programs.program(main)([]) == 2
  error = capsys.readouterr().err
  assert error.startswith("experiments.some: matplotlib is not installed; ")
  assert 'pip install "marjax[demo]"' in error


def test_the_pace_is_that_of_all_processes(monkeypatch):
  now, left = [0.0], [4]
  monkeypatch.setattr(rows.time, "monotonic", lambda: now[0])
  pace = rows.Pace(lambda: left[0])
  assert str(pace) == "0 of 4 rows, about 0:00:00 left"
  now[0], left[0] = 600.0, 2
  assert str(pace) == "2 of 4 rows, about 0:10:00 left"


def test_what_is_chosen_twice_is_chosen():
  assert programs.chosen("study", "b,a,b", "abc") == ["b", "a"]


def test_a_command_that_is_interrupted_says_so(monkeypatch, capsys):
  """And ends at once after the second; a caller from Python hears of it."""

  def main(argv):
    raise KeyboardInterrupt

  listening = []
  monkeypatch.setattr(interrupts, "begin", lambda: listening.append(True))
  monkeypatch.setattr(interrupts, "_said", threading.Event())
  program = programs.program(main)
  with pytest.raises(KeyboardInterrupt):
    program([])
  assert not listening
  assert program() == interrupts.CODE == 130
  assert listening
  error = capsys.readouterr().err
  assert error == "marjax: interrupted: what is done is kept.\n"


def test_a_training_that_diverges_is_one_sentence(monkeypatch, capsys):
  def main(argv):
    raise FloatingPointError("the loss is nan")

  monkeypatch.setitem(main.__globals__, "__name__", "marjax.train.loop")
  spec = types.SimpleNamespace(name="experiments.some")
  monkeypatch.setitem(main.__globals__, "__spec__", spec)
  assert programs.program(main)([]) == 2
  assert capsys.readouterr().err == "experiments.some: the loss is nan\n"


def test_what_cannot_be_is_refused_before_a_training(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(programs, "train", None)
  monkeypatch.setattr(finetune, "write_halves", None)
  (tmp_path / "file").write_text("")
  for module in (table1, heads, finetune):
    flags = [f"--runs={tmp_path}", f"--out={tmp_path / 'rows.jsonl'}"]
    assert module.main([*flags, "--num_images=27"]) == 2
    assert "num_images is 27; expected a mult" in capsys.readouterr().err
    assert module.main([*flags, f"--out={tmp_path / 'file' / 'rows'}"]) == 2
    assert "is a file; expected a folder: choose" in capsys.readouterr().err


def test_a_row_that_cannot_be_kept_is_not_measured(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(NotADirectoryError, match="choose another --out"):
    rows.measured(tmp_path / "file" / "rows.jsonl", {"a": 1}, None)


@pytest.mark.parametrize("flag", ["--num_runs", "--num_images"])
def test_counts_below_1_are_refused_before_the_work(
  flag, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(programs, "train", None)  # it would take minutes
  for module in (table1, heads):
    assert module.main([f"--runs={tmp_path}", flag, "0"]) == 2
    said = capsys.readouterr().err
    assert f"{flag}: it is '0'; expected a whole number, 1 or more" in said
    assert said.count("\n") == 1


def test_a_line_that_is_no_row_is_named(tmp_path):
  file = tmp_path / "rows.jsonl"
  file.write_text('{"a": 1}\n[3]\n')
  with pytest.raises(ValueError, match=":2 is no JSON object"):
    rows.read(file)


def test_tables_are_written_in_a_checkout_alone(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert tables.main(["--write"]) == 2
  assert "there is no README.md here; expected" in capsys.readouterr().err
  assert not [*tmp_path.iterdir()]


def test_a_font_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "fontTools", types.ModuleType("fontTools"))
  part = types.ModuleType("fontTools.ttLib")
  part.TTFont = None
  monkeypatch.setitem(sys.modules, "fontTools.ttLib", part)
  font = str(tmp_path / "none.ttf")
  assert emoji.main([str(tmp_path / "out"), "--font", font]) == 2
  assert f"{font} does not exist; expected the font" in capsys.readouterr().err
