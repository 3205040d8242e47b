"""What belongs to which part of the model, and what a plan pads."""

import dataclasses
import json

import jax
import pytest
import small
from PIL import Image

from experiments import markdown, rows, tables
from experiments import preflight as experiment
from marjax.experiment import MeshConfig
from marjax.generate.plan import Plan, Segment
from marjax.generate.reveal import plan_for
from marjax.generate.settings import Settings
from marjax.head.reverse import ReverseSettings
from marjax.parallel.chips import CHIPS, GIB, Chip
from marjax.preflight import hlo, parts, pictures, report, table
from marjax.schema import to_dict

MASKED = ("encoder", "decoder", "head", "rest")
CHIP = Chip("made up", 1.0, 4 * GIB, 500.0, 1.0)
SAMPLING = Settings(
  num_ar_steps=4,
  guidance_scale=2.0,
  num_buckets=2,
  head=ReverseSettings(num_steps=2),
)
IMAGES = 2
"""On each of eight devices."""


@pytest.mark.parametrize(
  ("scope", "part"),
  [
    (
      "jit(f)/while/body/MarModel.z/backbone.decode/decoder/while/fc1",
      "decoder",
    ),
    ("/MarModel.z/backbone/backbone.encode_all/encoder/layers/qkv", "encoder"),
    ("jit(f)/backbone/backbone.encode_all/encoder_norm/add", "encoder"),
    ("params['backbone']['encoder']['layers']['kernel']", "encoder"),
    ("jit(f)/while/MarModel.sample/head.sample/reverse/dot_general", "head"),
    ("jit(f)/MarModel.z/backbone/backbone.decode/head_positions/add", "rest"),
    ("jit(f)/backbone/backbone.decode/embed_encoded/dot_general", "rest"),
    ("jit(f)/while/body/dynamic_update_slice", "rest"),
    ("jit(f)/MarModel.step/backbone/stacks_1.cached/layers/dot", "blocks"),
    ("jit(f)/MarModel.step/backbone/memory.cached/layers/block/fc1", "memory"),
    ("jit(f)/MarModel.step/backbone/memory_norm/add", "memory"),
    ("jit(f)/MarModel.step/backbone/to_keys/dot_general", "memory"),
    ("jit(f)/MarModel.step/backbone/queries/layers/block/query", "queries"),
    ("", "rest"),
  ],
)
def test_a_scope_tells_the_part(scope, part):
  assert parts.part_of(scope) == part


# Fetches have no names. One is used in the loop, one there in its next round,
# one outside after a copy; the last one's is known from the fusion's inside.
TEXT = """\
%body (p: (s32[], f32[100], f32[100])) -> (s32[], f32[100], f32[100]) {
  %p = (s32[], f32[100], f32[100]) parameter(0)
  %i = s32[]{:S(1)} get-tuple-element(%p), index=0
  %w = f32[100] get-tuple-element(%p), index=1
  %v = f32[100]{0:S(1)} get-tuple-element(%p), index=2
  %one = s32[]{:S(1)} constant(1)
  %next = s32[]{:S(1)} add(%i, %one)
  %e = f32[100]{0:S(1)} negate(%w), metadata={op_name="a/encoder/negate"}
  %d = f32[100]{0:S(1)} negate(%v), metadata={op_name="a/decoder/negate"}
  %f = (f32[100]{0:S(1)}, f32[100], u32[]) copy-start(%w)
  %g = f32[100]{0:S(1)} copy-done(%f)
  ROOT %t = (s32[], f32[100], f32[100]) tuple(%next, %w, %g)
}
%cond (p: (s32[], f32[100], f32[100])) -> pred[] {
  %p = (s32[], f32[100], f32[100]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %c = s32[] constant(3)
  ROOT %lt = pred[]{:S(1)} compare(%i, %c), direction=LT
}
%inside (x: f32[10]) -> f32[10] {
  %x = f32[10] parameter(0)
  ROOT %n = f32[10] negate(%x), metadata={op_name="a/head/negate"}
}
ENTRY %main (a: f32[100]) -> f32[10] {
  %a = f32[100] parameter(0)
  %b = f32[100] copy(%a)
  %zero = s32[] constant(0)
  %init = (s32[], f32[100], f32[100]) tuple(%zero, %b, %b)
  %loop = (s32[], f32[100], f32[100]) while(%init), condition=%cond, body=%body
  %k = (f32[20]{0:S(1)}, f32[20], u32[]) copy-start(%a)
  %l = f32[20]{0:S(1)} copy-done(%k)
  %m = f32[20]{0:S(1)} bitcast(%l)
  %h = f32[20]{0:S(1)} negate(%m), metadata={op_name="a/head/negate"}
  ROOT %r = f32[10] fusion(%h), kind=kLoop, calls=%inside
}
"""


def test_what_xla_makes_belongs_to_what_uses_it():
  found = parts.by_part([hlo.parse(TEXT)], {}, None)
  traffic = {part: work.memory_traffic for part, work in found.items()}
  assert traffic == {
    # The copy, read and written; what the loop reads of it, three times.
    "encoder": 4 * (200 + 3 * 100),
    # Fetched in each of three rounds, for the next.
    "decoder": 4 * 3 * 100,
    "head": 4 * (20 + 10),
    "rest": 0.0,
  }


def test_padding_by_hand():
  segments = (
    Segment(0, (0, 1, 3), (1, 2, 1), 2, 10),
    Segment(3, (4,), (5,), 1, 7),
  )
  first, last = parts.padding(
    Plan(9, 4, segments, (8, 6, 5, 0)), lambda known: 4.0 + known
  )
  assert dataclasses.asdict(first) == {
    "first_step": 0,
    "last_step": 2,
    "encoder_length": 3,
    "head_width": 2,
    "backbone_work": 3 * (4 + 3),
    "needed_work": 4 + 5 + 7,
    "head_rows": 3 * 2 * 10,
    "needed_rows": (1 + 2 + 1) * 10,
  }
  assert (last.backbone_work, last.needed_work) == (8, 8)
  assert (last.head_rows, last.needed_rows) == (5 * 7, 5 * 7)


@pytest.fixture(scope="module")
def found():
  """The report of a small guided generation, on eight CHIPs."""
  asked = dataclasses.replace(
    small.EXPERIMENT, mesh=MeshConfig("dp"), sampling=SAMPLING
  )
  devices = jax.devices()[:8]
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(CHIPS, devices[0].device_kind, CHIP)
    return report.preflight(asked, devices, "here", "generate", 8 * IMAGES)


def test_parts_sum_to_what_the_report_says(found):
  assert tuple(found.parts) == MASKED
  for name in ("useful_flops", "program_flops", "memory_traffic"):
    values = [getattr(part, name) for part in found.parts.values()]
    assert sum(values) == getattr(found, name)
    assert min(values) > 0
  for name in ("arithmetic", "memory"):
    seconds = sum(getattr(part.bound, name) for part in found.parts.values())
    assert seconds == pytest.approx(getattr(found.bound, name))


@pytest.mark.parametrize(
  ("kind", "stacks"),
  [("random", ["blocks"]), ("guided", ["memory", "queries"])],
)
def test_other_backbones_have_other_stacks(kind, stacks):
  experiment = small.of_kind(kind, is_coded=True)
  asked = dataclasses.replace(experiment, mesh=MeshConfig("dp"))
  found = report.preflight(asked, jax.devices()[:8], "here", "generate", 8)
  assert list(found.parts) == [*stacks, "head", "rest"]
  settings = asked.sampling.for_model(asked.model)
  *_, before_last, _ = plan_for(asked.model, settings).known_after
  # What enters the stack; nobody looks back at the tokens of the last step.
  slots = {"blocks": 2 * 16, "memory": 1 + before_last, "queries": 16}
  for name in stacks:
    # One image, with its label and without; attention comes on top.
    matrices = 2 * slots[name] * 24 * asked.model.backbone.width**2
    # The queries' keys and values are the memory's.
    matrices *= 20 / 24 if name == "queries" else 1
    assert matrices < found.parts[name].useful_flops < 1.4 * matrices
  logits = 2 * 16 * 2 * asked.model.backbone.width * 12
  assert found.parts["head"].useful_flops == logits


def slot_flops(counts):
  """Of one encoder block, for these numbers of slots at each step."""
  width = small.MODEL.backbone.width
  each = (n * (24 * width**2 + 4 * n * width) for n in counts)
  # Each image with and without its label.
  return 2 * IMAGES * sum(each)


def test_the_encoders_arithmetic_by_hand(found):
  assert small.MODEL.backbone.encoder_depth == 1
  buffer = small.MODEL.backbone.num_buffer
  padded, needed = [], []
  for segment in plan_for(
    small.MODEL, SAMPLING.for_model(small.MODEL)
  ).segments:
    padded += [buffer + segment.encoder_length] * len(segment.num_known)
    needed += [buffer + count for count in segment.num_known]
  assert sum(padded) > sum(needed)
  work = found.parts["encoder"]
  assert work.program_flops == slot_flops(padded)
  assert work.useful_flops == slot_flops(needed)


def test_the_head_is_padded_as_the_plan_says(found):
  rows_padded = sum(segment.head_rows for segment in found.padding)
  rows_needed = sum(segment.needed_rows for segment in found.padding)
  work = found.parts["head"]
  # But for time embeddings, which are shared by all rows.
  assert work.program_flops / work.useful_flops == pytest.approx(
    rows_padded / rows_needed, rel=0.05
  )
  assert rows_padded > rows_needed


def test_the_tables_of_parts_and_padding(found):
  text = table.as_text(found)
  lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
  for name, part in found.parts.items():
    work, needed = part.program_flops / 1e6, part.useful_flops / 1e6
    assert lines[name][1:4] == [
      f"{work / IMAGES:.3f}",
      f"{work:.3f}",
      f"{work / needed:.3f}",
    ]
    assert lines[name][-1] == part.bound.longest
  assert "MFLOP/image" in text
  # CHIP has 2 FLOPs for each byte.
  assert "memory is the limit below 2 FLOP/byte" in text
  first = found.padding[0]
  row = [
    str(first.encoder_length),
    f"{first.backbone_work / first.needed_work:.3f}",
  ]
  rows = [line.split() for line in text.splitlines() if " .. " in line]
  assert rows[0][:5] == ["0", "..", str(first.last_step), *row]
  nameless = dataclasses.replace(
    found,
    bound=None,
    parts={
      name: dataclasses.replace(part, bound=None)
      for name, part in found.parts.items()
    },
  )
  assert "one part after the other" not in table.as_text(nameless)


def coloured(drawn, path):
  """Pixels that are needed work, traffic and padding in a report's picture."""
  pictures.draw_parts(drawn, path)
  pixels = Image.open(path).convert("RGB").getcolors(2**20)
  counts = {colour: count for count, colour in pixels}
  colours = [pictures.COLOURS[index][1:] for index in (0, 1, 3)]
  return [counts[tuple(bytes.fromhex(colour))] for colour in colours]


def test_the_areas_of_the_picture(found, tmp_path):
  needed, traffic, padding = coloured(found, tmp_path / "parts.png")
  exact = {
    name: dataclasses.replace(part, useful_flops=part.program_flops)
    for name, part in found.parts.items()
  }
  without = dataclasses.replace(found, parts=exact)
  *_, patch = coloured(without, tmp_path / "without.png")
  # The legend has a patch of either colour, and no more is padding now.
  needed, padding = needed - patch, padding - patch
  share = 1 - found.useful_flops / found.program_flops
  assert share > 0.05
  assert padding / (needed + padding) == pytest.approx(share, rel=0.1)
  # Equal areas are equal seconds, in both panels.
  assert traffic / (needed + padding) == pytest.approx(
    found.bound.memory / found.bound.arithmetic, rel=0.1
  )


def test_rows_of_generation_have_their_parts(found, tmp_path):
  path = tmp_path / "rows.jsonl"
  asked = ("small", "here", "generate")
  row = json.loads(json.dumps(to_dict(found)))
  rows.append(path, {**row, "parts": {}})
  assert not experiment.is_there(path, *asked)
  rows.append(path, row)
  assert experiment.is_there(path, *asked)
  (newest,) = tables.newest(rows.read(path))
  lines = tables.part_by_part([newest])
  assert [line["part"] for line in lines] == [*MASKED, "in all"]
  whole = found.program_flops / IMAGES
  assert lines[-1]["flops_per_image"] == whole
  assert sum(line["flops_per_image"] for line in lines) == 2 * whole
  assert len(markdown.table(tables.PARTS, lines).splitlines()) == 2 + 5
