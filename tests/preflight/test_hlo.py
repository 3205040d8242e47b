"""Counts in compiled programs whose answers are known by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from marjax.parallel.mesh import make_mesh
from marjax.preflight import costs, hlo
from marjax.preflight.topology import devices_of

ROWS, WIDTH, TRIPS = 64, 256, 5


def flops(module):
  return sum(number for _, number in costs.products(module))


def traffic(module):
  return sum(number for _, number in costs.transfers(module))


def meshes():
  """Eight fake CPU devices, then eight chips that are not there."""
  yield make_mesh(fsdp=8, devices=jax.devices()[:8])
  pytest.importorskip("libtpu")
  yield make_mesh(fsdp=8, devices=devices_of("v5e:2x4"))


@functools.cache
def module(platform, function, *axes):
  """The program of a function of x [ROWS, WIDTH] and w, split as told."""
  mesh = next(m for m in meshes() if m.devices.flat[0].platform == platform)
  shapes = [(ROWS, WIDTH), (TRIPS, WIDTH, WIDTH)]
  arguments = [
    jax.ShapeDtypeStruct(
      shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axis))
    )
    for shape, axis in zip(shapes, axes, strict=True)
  ]
  with jax.set_mesh(mesh):
    return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def layers(x, w):
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def layers_twice(x, w):
  return jax.lax.scan(lambda x, _: (layers(x, w), None), x, None, length=3)[0]


PLATFORMS = pytest.mark.parametrize("platform", ["cpu", "tpu"])
BATCH, EMBED = ("fsdp",), (None, "fsdp")


@PLATFORMS
@pytest.mark.parametrize(
  ("function", "trips"), [(layers, TRIPS), (layers_twice, 3 * TRIPS)]
)
def test_products_in_loops_count_as_often_as_they_run(
  platform, function, trips
):
  found = flops(module(platform, function, BATCH, ()))
  # Each device has its own rows and all of w.
  assert found == 2 * ROWS / 8 * WIDTH**2 * trips


@PLATFORMS
def test_a_split_parameter_is_gathered_layer_by_layer(platform):
  found = costs.collectives(module(platform, layers, BATCH, EMBED))
  whole = 4 * TRIPS * WIDTH**2
  moved = sum(
    c.times * c.num_bytes * (7 if c.kind == "collective-permute" else 8) / 8
    for c in found
    if c.kind in ("all-gather", "collective-permute")
  )
  assert {c.kind for c in found} <= {"all-gather", "collective-permute"}
  assert all(c.num_bytes <= whole / TRIPS for c in found)
  assert sum(c.times for c in found) >= TRIPS
  assert moved <= whole * 1.01


@PLATFORMS
def test_a_mean_over_rows_is_one_reduction(platform):
  def mean(x, w):
    return x.mean(0) + w[0, 0]

  (found,) = costs.collectives(module(platform, mean, BATCH, ()))
  assert (found.kind, found.group, found.times) == ("all-reduce", 8, 1)
  assert found.num_bytes == 4 * WIDTH
  assert found.sent_bytes == 2 * 7 / 8 * 4 * WIDTH


def ring(x, w):
  """Rows go from device to device, TRIPS times, then all come to all."""
  to_next = [(i, (i + 1) % 8) for i in range(8)]

  def shifted(x, _):
    return jnp.tanh(jax.lax.ppermute(x, "fsdp", to_next)), None

  def each(x, w):
    x = jax.lax.scan(shifted, x, None, length=TRIPS)[0]
    is_first = x[0, 0] > w[0, 0, 0]
    total = jax.lax.cond(
      is_first,
      lambda x: jax.lax.psum(jnp.sin(x), "fsdp"),
      lambda x: jnp.cos(jax.lax.psum(x * x, "fsdp")),
      x,
    )
    swapped = jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True)
    return total, swapped, jax.lax.all_gather(x, "fsdp", tiled=True)

  batch, whole = PartitionSpec("fsdp"), PartitionSpec()
  return jax.shard_map(
    each,
    in_specs=(batch, whole),
    out_specs=(whole, PartitionSpec(None, "fsdp"), whole),
    check_vma=False,
  )(x, w)


@PLATFORMS
def test_every_kind_is_counted_by_hand(platform):
  found = costs.collectives(module(platform, ring, BATCH, ()))
  rows = 4 * ROWS / 8 * WIDTH
  counted = sorted((c.kind, c.times, c.num_bytes, c.sent_bytes) for c in found)
  assert counted == [
    ("all-gather", 1, 8 * rows, 7 * rows),
    # One of two branches runs, and both are counted.
    ("all-reduce", 1, rows, 2 * 7 / 8 * rows),
    ("all-reduce", 1, rows, 2 * 7 / 8 * rows),
    ("all-to-all", 1, rows, 7 / 8 * rows),
    ("collective-permute", TRIPS, rows, TRIPS * rows),
  ]


@PLATFORMS
def test_nothing_is_exchanged_where_nothing_is_split(platform):
  assert costs.collectives(module(platform, layers, (), ())) == []


def test_what_is_read_and_written():
  program = module("cpu", lambda x, w: (x * 2, w[0] + 1), (), ())
  touched = traffic(program)
  least = 4 * (2 * ROWS * WIDTH + 2 * WIDTH**2)
  assert least <= touched <= 2 * least


TEXT = """\
HloModule m
%body (p: (f32[4], u32[])) -> (f32[4], u32[]) {
  %p = (f32[4]{0:T(8,128)S(1)}, u32[]) parameter(0)
  %x = f32[4]{0:T(128)S(1)} get-tuple-element(%p), index=0
  %i = u32[] get-tuple-element(%p), index=1
  %two = u32[] constant(2)
  %next = u32[] add(%i, %two)
  %s = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), channel_id=1, \
replica_groups=[1,8]<=[8], dimensions={0}
  %d = f32[32]{0} all-gather-done(%s)
  ROOT %t = (f32[4], u32[]) tuple(%y, %next)
}
%cond (p: (f32[4], u32[])) -> pred[] {
  %p = (f32[4], u32[]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=1
  %c = u32[]{:T(128)} constant(8)
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}
%yes (x: f32[4]) -> f32[4] {
  ROOT %r = f32[4]{0} all-reduce(%x), channel_id=2, \
replica_groups={{0,1},{2,3}}, to_apply=%sum, metadata={op_name="a/b"}
}
%no (x: f32[4]) -> f32[4] {
  ROOT %r = f32[4]{0} parameter(0)
}
%piece (x: f32[4]) -> f32[8] {
  ROOT %g = f32[8]{0} all-gather(%x), channel_id=5, \
replica_groups=mesh['a'=2,'b'=4] {'a'}, frontend_attributes={chain_id="3"}
}
ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %f = f32[8]{0} fusion(%a), kind=kCustom, calls=%piece, \
metadata={op_name="the fusion"}
  %g = f32[8]{0} fusion(%a), kind=kCustom, calls=%piece
  %first = u32[] constant(2)
  %start = u32[] copy(%first)
  %init = (f32[4]{0}, u32[]) tuple(%a, /*index=1*/%start)
  %w = (f32[4]{0}, u32[]) while(%init), condition=%cond, body=%body
  ROOT %z = f32[4]{0} conditional(%p, %a, %a), \
true_computation=%yes, false_computation=%no
}
"""


def test_loops_branches_halves_and_pieces():
  found = {c.kind + str(c.times): c for c in costs.collectives(hlo.parse(TEXT))}
  # The counter is 2, 4, 6.
  assert set(found) == {"all-gather3", "all-reduce1", "all-gather1"}
  assert found["all-gather3"].num_bytes == 4 * 32
  assert found["all-gather3"].sent_bytes == 3 * 7 / 8 * 4 * 32
  assert found["all-gather1"].group == 2
  assert found["all-reduce1"].op_name == "a/b"
  assert found["all-gather1"].op_name == "the fusion"


def test_memories_that_are_not_the_main_one():
  x = hlo.parse(TEXT).computations["body"].instructions["x"]
  assert [array.is_main for array in x.arrays] == [False]
  assert x.num_bytes == 16


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("u32[]{:T(128)} constant(8)", "u32[] parameter(1)"),
    ("direction=LT", "direction=NE"),
    ("add(%i, %two)", "multiply(%i, %two)"),
    ("add(%i, %two)", "add(%c, %two)"),
    ("copy(%first)", "negate(%first)"),
    ("while(%init)", "while(%a)"),
  ],
)
def test_a_loop_of_unknown_length_is_told(old, new):
  assert TEXT.count(old) == 1
  with pytest.raises(ValueError, match="cannot be told; expected a loop"):
    costs.collectives(hlo.parse(TEXT.replace(old, new)))


COPIES = """\
ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %in = (f32[8]{0:S(1)}, f32[8]{0}, u32[]) copy-start(%a)
  %near = f32[8]{0:S(1)} copy-done(%in)
  %part = ((f32[8]{0}), f32[2]{0:S(1)}, s32[]) slice-start(%a), slice={[0:2]}
  %piece = f32[2]{0:S(1)} slice-done(%part)
  ROOT %all = f32[8]{0} broadcast(%piece), dimensions={0}
}
"""


def test_copies_between_memories_count_on_the_side_of_the_main_one():
  assert traffic(hlo.parse(COPIES)) == 4 * (8 + 2 + 8)


@pytest.mark.parametrize(
  ("size", "stride", "pad", "lhs_dilate", "rhs_dilate"),
  [(1, 1, 0, 1, 1), (3, 1, 1, 1, 1), (3, 2, 1, 1, 1), (2, 1, 2, 2, 3)],
)
def test_taps_are_those_that_meet_an_element(
  size, stride, pad, lhs_dilate, rhs_dilate
):
  """Against a convolution of ones, whose sum is the number of taps."""
  lengths = {"window_strides": (stride,), "padding": [(pad, pad)]}
  ones = jax.lax.conv_general_dilated(
    jnp.ones((1, 1, 8)),
    jnp.ones((1, 1, size)),
    lhs_dilation=(lhs_dilate,),
    rhs_dilation=(rhs_dilate,),
    **lengths,
  )
  taps = costs._taps(
    8, ones.shape[-1], size, stride, pad, lhs_dilate, rhs_dilate
  )
  assert taps == int(np.sum(ones))


CUBLAS = """\
HloModule m
ENTRY %main (a: bf16[8,40,16], b: bf16[8,16,24]) -> bf16[8,40,24] {
  %a = bf16[8,40,16]{2,1,0} parameter(0)
  %b = bf16[8,16,24]{2,1,0} parameter(1)
  %c = (bf16[8,40,24]{2,1,0}, s8[4096]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$lt$matmul", backend_config={\
"gemm_backend_config":{"dot_dimension_numbers":{\
"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],\
"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}
  ROOT %d = bf16[8,40,24]{2,1,0} get-tuple-element(%c), index=0
}
"""


def test_a_call_of_cublas_is_a_product_and_its_workspace_no_traffic():
  program = hlo.parse(CUBLAS)
  assert flops(program) == 2 * 8 * 40 * 16 * 24
  assert traffic(program) == 2 * 8 * (40 * 16 + 16 * 24 + 40 * 24)


NESTED = """HloModule nested

%taken (stack: f32[8,64,256], at: s32[]) -> f32[64,256] {
  %stack = f32[8,64,256]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,64,256]{2,1,0} dynamic-slice(%stack, %at, %zero, %zero), \
dynamic_slice_sizes={1,64,256}
  ROOT %row = f32[64,256]{1,0} bitcast(%one)
}

%outer (stack.1: f32[8,64,256], at.1: s32[]) -> f32[64,256] {
  %stack.1 = f32[8,64,256]{2,1,0} parameter(0)
  %at.1 = s32[] parameter(1)
  %row.1 = f32[64,256]{1,0} fusion(%stack.1, %at.1), kind=kLoop, calls=%taken
  ROOT %twice = f32[64,256]{1,0} add(%row.1, %row.1)
}

ENTRY %main (stack.2: f32[8,64,256], at.2: s32[], index: s32[2]) -> f32[] {
  %stack.2 = f32[8,64,256]{2,1,0} parameter(0)
  %at.2 = s32[] parameter(1)
  %index = s32[2]{0} parameter(2)
  %row.2 = f32[64,256]{1,0} fusion(%stack.2, %at.2), kind=kLoop, calls=%outer
  ROOT %kernel = f32[64,256]{1,0} custom-call(%row.2, %stack.2, %index), \
custom_call_target="__gpu$xla.gpu.triton"
}
"""


def test_of_a_stack_only_the_entry_that_is_used_is_read():
  """By a fusion inside a fusion, and by a kernel that is told which entry."""
  row = 4 * 64 * 256
  fusion, kernel = costs.transfers(hlo.parse(NESTED))
  assert fusion[1] == row + row
  assert kernel[1] == row + row + row + 8
  without = NESTED.replace("%stack.2, %index)", "%stack.2)")
  *_, kernel = costs.transfers(hlo.parse(without))
  assert kernel[1] == row + 8 * row + row
