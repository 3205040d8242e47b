"""Scaling rows: each question once, efficiency against one device."""

import json

import jax
import pytest

from benchmarks import exposed, on_devices, scaling, timing
from experiments import rows

COLUMNS = {
  *("name", "mode", "task", "size", "preset", "num_devices", "batch_size"),
  *("images_per_device", "dtype", "remat", "seconds", "repeats", "efficiency"),
  *("is_same_run", "images_per_second", "memory_bytes", "compile_seconds"),
  *("communication_seconds", "exposed_seconds", "exposed_reason", "date"),
  *("collectives", "device", "versions"),
}


@pytest.fixture
def compiled(monkeypatch):
  """Programs that are not compiled; those asked for, in order.

  On n devices each takes 1 + 0.1 (n - 1) s, for any number of images.
  """
  asked = []

  def make(program):
    asked.append(program)
    seconds = 1 + 0.1 * (program.num_devices - 1)
    monkeypatch.setattr(timing, "rounds", lambda call, _: [call()])
    return on_devices.Compiled(
      2.0, 3, {}, lambda: lambda: seconds, lambda _: exposed.NONE, {}
    )

  monkeypatch.setattr(
    on_devices, "COMPILERS", {"train": make, "generate": make}
  )
  return asked


def run(out, *flags):
  assert scaling.main(["--out", str(out), "--together", "1", *flags]) == 0
  return rows.read(out)


def test_rows_go_from_one_device_to_all(compiled, tmp_path):
  table = run(tmp_path / "rows.jsonl", "--rows", "train_large_dp_weak")
  assert [
    (row["num_devices"], row["preset"], row["batch_size"]) for row in table
  ] == [(1, "one", 128), (2, "dp", 256), (4, "dp", 512), (8, "dp", 1024)]
  assert [row["efficiency"] for row in table] == pytest.approx(
    [1, 1 / 1.1, 1 / 1.3, 1 / 1.7]
  )
  assert all(row["is_same_run"] for row in table)


def test_strong_rows_share_one_batch_and_programs_are_shared(
  compiled, tmp_path
):
  flags = ("--rows", "train_large_dp_weak,train_large_dp_strong")
  table = run(tmp_path / "rows.jsonl", *flags, "--devices", "2,4")
  found = {(row["mode"], row["num_devices"]): row for row in table}
  assert len(found) == len(table) == 6
  strong = [found["strong", count] for count in (1, 2, 4)]
  assert {row["batch_size"] for row in strong} == {256}
  assert [row["efficiency"] for row in strong] == pytest.approx(
    [1, 1 / 1.1 / 2, 1 / 1.3 / 4]
  )
  # 256 images on two devices are both modes' own.
  assert found["weak", 2]["seconds"] == found["strong", 2]["seconds"]
  assert len(compiled) == len(set(compiled)) == 5


def test_meshes_share_the_row_of_one_device(compiled, tmp_path):
  flags = ("--rows", "train_huge_dp_weak,train_huge_fsdp_weak")
  table = run(tmp_path / "rows.jsonl", *flags, "--devices", "2")
  assert [row["preset"] for row in table] == ["one", "dp", "fsdp"]
  assert {row["remat"] for row in table} == {"save_matmuls"}


def test_rows_that_are_there_are_skipped(compiled, tmp_path, capsys):
  out, flags = tmp_path / "rows.jsonl", ("--rows", "generate_large_dp_weak")
  first = run(out, *flags, "--devices", "2")
  assert run(out, *flags, "--devices", "2") == first
  assert len(compiled) == 2
  # The rate of one device is that of the earlier run, and the row says so.
  *_, row = run(out, *flags, "--devices", "4")
  assert (row["num_devices"], row["is_same_run"]) == (4, False)
  assert row["efficiency"] == pytest.approx(1 / 1.3)
  # Other settings, and other devices, are other questions.
  assert len(run(out, *flags, "--devices", "1", "--dtype", "float32")) == 4
  text = out.read_text().replace('"kind": "cpu"', '"kind": "H"')
  out.write_text(text)
  assert len(run(out, *flags, "--devices", "2")) == 6


def test_no_row_is_begun_after_the_limit(
  compiled, tmp_path, monkeypatch, capsys
):
  clock = iter([0.0, 1.0, 2.0, 3.0, 99.0])
  monkeypatch.setattr(scaling.time, "monotonic", lambda: next(clock, 99.0))
  flags = ("--rows", "train_large_dp_weak", "--limit_s", "10")
  table = run(tmp_path / "rows.jsonl", *flags)
  assert [row["num_devices"] for row in table] == [1]
  said = capsys.readouterr().out
  assert "not measured: train_large_dp_weak on 2," in said
  # The rest comes with the next run.
  monkeypatch.setattr(scaling.time, "monotonic", lambda: 0.0)
  table = run(tmp_path / "rows.jsonl", *flags)
  assert [row["num_devices"] for row in table] == [1, 2, 4, 8]


def test_what_does_not_fit_is_said_and_the_rest_goes_on(
  compiled, tmp_path, monkeypatch, capsys
):
  make = on_devices.COMPILERS["train"]

  def make_or_fail(program):
    if program.num_devices == 1:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    return make(program)

  monkeypatch.setattr(on_devices, "COMPILERS", {"train": make_or_fail})
  flags = ("--rows", "train_large_dp_weak", "--devices", "1,2")
  (row,) = run(tmp_path / "rows.jsonl", *flags)
  assert row["num_devices"] == 2
  assert row["efficiency"] is None
  said = capsys.readouterr().out
  assert "RESOURCE_EXHAUSTED: out of memory" in said
  assert "not measured: train_large_one_weak on 1" in said


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--rows", "train_giant_dp_weak"], "no row 'train_giant_dp_weak'; expect"),
    (["--rows", "train_large_one_weak"], "MESH of dp, fsdp"),
    (["--rows", "generate_large_dp_strong"], "generate_SIZE_MESH_weak"),
    (["--rows", "train_large_dp"], "no row 'train_large_dp'"),
    (["--devices", "1,9"], "--devices is '1,9'; expected numbers from 1 to 8"),
    (["--repeats", "0"], "--repeats: it is '0'; expected a whole number, 1"),
    (["--together", "0"], "--together: it is '0'; expected a whole number, 1"),
  ],
)
def test_wrong_flags_are_one_sentence(flags, message, tmp_path, capsys):
  out = tmp_path / "rows.jsonl"
  assert scaling.main(["--out", str(out), *flags]) == 2
  said = capsys.readouterr().err
  assert message in said
  assert said.count("\n") == 1
  assert not out.exists()


@pytest.mark.slow
def test_a_tiny_run_has_every_column(tmp_path, monkeypatch):
  monkeypatch.setattr(timing, "ROUND_SECONDS", 1e-3)
  flags = ["train_tiny_fsdp_weak", "generate_tiny_dp_weak"]
  out = tmp_path / "rows.jsonl"
  flags = ["--rows", ",".join(flags), "--devices", "2", "--repeats", "1"]
  assert scaling.main([*flags, "--out", str(out)]) == 0
  table = rows.read(out)
  assert len(table) == 4
  for row in table:
    assert row.keys() >= COLUMNS
    json.dumps(row)
    assert min(row["memory_bytes"], row["efficiency"], row["seconds"]) > 0
    rate = row["batch_size"] / row["seconds"]
    assert row["images_per_second"] == pytest.approx(rate)
  one, alone, split, copies = table
  assert (one["exposed_seconds"], one["collectives"]) == (0.0, {})
  # A CPU has collectives, and no profile to see them in.
  assert split["collectives"]["all-gather"] > 0
  assert split["exposed_seconds"] is None
  assert "kernels of 0 GPUs" in split["exposed_reason"]
  # Split parameters: each device holds less, with as many images.
  assert split["memory_bytes"] < 0.9 * one["memory_bytes"]
  # Whole copies generate without a word to each other.
  assert copies["collectives"] == {}
  assert copies["settings"] == alone["settings"]
