"""From a compiled program to a verdict, a table, files and a picture."""

import dataclasses
import json
import re

import jax
import pytest
import small
from PIL import Image

from marjax.cli import main
from marjax.experiment import MeshConfig
from marjax.parallel.chips import CHIPS, GIB, Chip
from marjax.preflight import bounds, pictures, programs, report, table
from marjax.preflight.costs import Collective
from marjax.preflight.programs import Program
from marjax.schema import to_dict

TINY = "tests/train/tiny.py"
CHIP = Chip("made up", 1.0, 4 * GIB, 10.0, 1.0)

# What XLA's compilers for TPU and GPU have been seen to say.
TOO_LARGE = (
  "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for"
  " HLO temporaries (20.06G) exceeds available HBM (15.75G)."
)
TEXT = """\
ENTRY %main (a: bf16[1000,1000]) -> bf16[1000,1000] {
  %a = bf16[1000,1000]{1,0} parameter(0)
  %g = bf16[1000,1000]{1,0} all-reduce(%a), replica_groups=[1,8]<=[8], \
to_apply=%sum, metadata={op_name="head/modulation"}
  ROOT %d = bf16[1000,1000]{1,0} dot(%g, %a), lhs_contracting_dims={1}
}
"""


class Compiled:
  """What a preflight asks of a compiled program."""

  def __init__(self, temporaries):
    self.temp_size_in_bytes = temporaries
    self.argument_size_in_bytes = GIB
    self.output_size_in_bytes = GIB
    self.alias_size_in_bytes = 0.75 * GIB
    self.generated_code_size_in_bytes = 0.125 * GIB

  def memory_analysis(self):
    return self

  def as_text(self):
    return TEXT


def experiment(**training):
  return dataclasses.replace(
    small.EXPERIMENT,
    mesh=MeshConfig("dp"),
    training=dataclasses.replace(small.EXPERIMENT.training, **training),
  )


@pytest.fixture
def found(monkeypatch):
  """The report of programs with these temporaries, on eight CHIPs."""
  monkeypatch.setitem(CHIPS, jax.devices()[0].device_kind, CHIP)

  def preflight(*temporaries, batch_size=4096):
    held = {"parameters": 0.25 * GIB, "averages": 0.25 * GIB}
    made = [Program("step", Compiled(size), held) for size in temporaries]
    monkeypatch.setattr(programs, "train_programs", lambda *_: made)
    per_image = 8e9 / batch_size
    monkeypatch.setattr(report.flops, "training_flops", lambda _: per_image)
    return report.preflight(
      experiment(batch_size=batch_size), jax.devices()[:8], "here"
    )

  return preflight


def test_memory_is_that_of_the_largest_program(found):
  result = found(0.5 * GIB, GIB)
  assert result.memory == {
    "parameters": 0.25 * GIB,
    "averages": 0.25 * GIB,
    "other arguments": 0.5 * GIB,
    # And results that take no argument's place.
    "temporaries": 1.25 * GIB,
    "program": 0.125 * GIB,
  }
  assert (result.needed, result.limit) == (2.375 * GIB, 4 * GIB)
  assert result.fits
  assert result.advice == ()


def test_work_is_the_sum_of_all_programs(found):
  result = found(0, 0)
  assert result.program_flops == 2 * 2 * 1000**3
  exchange = result.collectives["all-reduce"]
  assert (exchange.count, exchange.num_bytes) == (2, 2 * 2e6)
  assert exchange.sent_bytes == 2 * 2 * 2e6 * 7 / 8
  # Each of the two programs: three arrays for the product, two for the sum.
  assert result.memory_traffic == 2 * 5 * 2e6


def test_the_bound_is_what_takes_longest():
  found = bounds.bound(CHIP, useful=1e12, work=2e12, traffic=1e10, sent=5e9)
  assert (found.arithmetic, found.memory, found.links) == (2.0, 1.0, 5.0)
  assert (found.seconds, found.utilisation) == (5.0, 0.2)


def test_what_does_not_fit_is_told_what_to_change(found):
  result = found(21 * GIB)
  assert not result.fits
  text = table.as_text(result)
  for part in (
    "DOES NOT FIT",
    "18.4 GiB more are needed",
    "--config.mesh.preset=fsdp saves about 0.438 GiB",
    "--config.training.num_microbatches=8 needs about 2.66 GiB",
    "--config.training.batch_size=512",
  ):
    assert part in text
  assert "remat" not in text  # Blocks are recomputed already.


def test_advice_can_be_followed_whatever_the_mesh_was(found):
  mesh = MeshConfig("custom", fsdp=2)
  custom = dataclasses.replace(experiment(batch_size=4096), mesh=mesh)
  advice = "".join(report.advice(found(21 * GIB), custom))
  assert "--config.mesh.preset=fsdp --config.mesh.fsdp=1 saves" in advice
  with pytest.raises(ValueError, match=r"fsdp=2.*expected mesh\.data=-1"):
    dataclasses.replace(mesh, preset="fsdp")


def test_changes_that_would_not_help_are_left_out(found):
  result = found(11 * GIB, batch_size=16)
  assert not any("batch" in change for change in result.advice)


def test_a_program_that_the_compiler_refuses(found, monkeypatch):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError(TOO_LARGE)
    yield

  found(0)
  monkeypatch.setattr(programs, "train_programs", refuse)
  result = report.preflight(experiment(), jax.devices()[:8], "here")
  assert result.needed == pytest.approx(20.06 * GIB)
  assert sum(result.memory.values()) == pytest.approx(result.needed)
  assert result.memory["optimizer"] > result.memory["parameters"] > 0
  assert not result.fits
  assert result.program_flops is None
  assert "DOES NOT FIT" in table.as_text(result)


def test_other_errors_of_the_compiler_are_not_hidden(found, monkeypatch):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError("INTERNAL: a defect")
    yield

  monkeypatch.setattr(programs, "train_programs", refuse)
  with pytest.raises(jax.errors.JaxRuntimeError, match="a defect"):
    report.preflight(experiment(), jax.devices()[:8], "here")


@pytest.mark.parametrize(
  ("said", "needed"),
  [
    (TOO_LARGE, 20.06 * GIB),
    ("Used 512.50M of 15.75G hbm. Exceeded", 512.5 * 2**20),
    ("INTERNAL: what", None),
  ],
)
def test_what_is_needed_is_read_from_the_message(said, needed):
  assert report.needed_bytes(said) == needed


def test_the_memory_of_a_cpu_is_shared_by_its_devices():
  devices = jax.devices()
  whole = bounds.limit(devices[:1])
  assert bounds.limit(devices[:8]) == whole / 8
  assert 0.5 * GIB < whole < 2**50


def test_the_table_names_the_costliest_and_scales_its_units(found):
  result = found(GIB)
  text = table.as_text(result)
  assert "memory of one chip, GiB" in text
  (whole,) = re.findall(r"GFLOP .*\n  in all +\S+ +(\S+)", text)
  assert float(whole) == 2.0
  assert "all-reduce bf16[1000, 1000] × 1: head/modulation" in text
  assert "A bound, not a forecast." in text
  less = dataclasses.replace(result, needed=3e6, memory={"batch": 3e6})
  assert "memory of one chip, MiB" in table.as_text(less)
  nameless = Collective("all-gather", (8,), "f32", 32.0, 8, 1, "")
  text = table.as_text(dataclasses.replace(result, largest=(nameless,)))
  assert "all-gather f32[8] × 1: (made by XLA)" in text


def test_a_device_of_unknown_memory(found):
  result = dataclasses.replace(found(GIB), limit=None)
  assert result.fits is None
  assert report.advice(result, experiment()) == ()
  assert "is not known" in table.as_text(result)


def test_the_picture_has_a_colour_for_each_part(found, tmp_path):
  result = found(GIB)
  pictures.draw_memory(result, tmp_path / "memory.png")
  pixels = Image.open(tmp_path / "memory.png").convert("RGB")
  colours = {colour for _, colour in pixels.getcolors(2**20)}
  shown = pictures.COLOURS[: len(result.memory)]
  assert {tuple(bytes.fromhex(each[1:])) for each in shown} <= colours


@pytest.fixture
def command(tmp_path):
  def run(*flags):
    where = ["--config", TINY, "--topology", "here", "--out", str(tmp_path)]
    size = "--config.training.batch_size=16"
    return main.main(["preflight", *where, size, *flags])

  return run


def test_the_command_for_generation_writes_its_files(command, tmp_path, capsys):
  assert command("--program", "generate", "--batch_size", "16") == 0
  shown = capsys.readouterr().out
  written = json.loads((tmp_path / "preflight.json").read_text())
  assert (tmp_path / "preflight.txt").read_text() == shown
  for picture in ("memory.png", "parts.png"):
    assert (tmp_path / picture).stat().st_size > 1000
  assert written["fits"] is True
  assert (written["program"], written["num_chips"]) == ("generate", 8)
  # Whole parameters on each device, and nothing to exchange.
  assert written["collectives"] == {}
  assert written["memory"]["parameters"] > 4 * 1000
  assert 1.0 < written["program_flops"] / written["useful_flops"] < 3.0
  assert command("--program", "generate") == 2
  assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (["--config.training.batch_size=12"], "expected a multiple of 8"),
    (["--config.mesh.fsdp=3"], "does not cover the 8 devices"),
    (["--program", "generate", "--batch_size", "12"], "a multiple of 8"),
    (["--program", "generate", "--batch_size", "0"], "batch_size is 0"),
    (["--num_slices", "2"], "here"),
  ],
)
def test_what_cannot_be_is_one_sentence(command, capsys, flags, sentence):
  assert command(*flags) == 2
  (line,) = capsys.readouterr().err.splitlines()[-1:]
  assert line.startswith("marjax: ")
  assert sentence in line


def test_a_report_is_plain_json(found):
  again = json.loads(json.dumps(to_dict(found(GIB))))
  assert again["bound"]["seconds"] > 0
  assert again["largest"][0]["op_name"] == "head/modulation"
