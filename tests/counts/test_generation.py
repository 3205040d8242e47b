"""Traces, primitives and collectives of generation."""

import re

import jax
import jax.numpy as jnp
import pytest
import small
from jax.extend.core import jaxprs_in_params

from marjax.generate import reveal
from marjax.generate.draws import draw_batch
from marjax.generate.settings import Settings
from marjax.head.reverse import ReverseSettings
from marjax.parallel.mesh import make_mesh
from marjax.pipeline import Pipeline
from marjax.requests import batching
from marjax.requests.compiled import Program
from marjax.train import flops

SETTINGS = Settings(
  num_ar_steps=6,
  guidance_scale=2.0,
  num_buckets=3,
  head=ReverseSettings(num_steps=8, start=900),
).for_model(small.MODEL)


def call():
  static = reveal.static_for(small.MODEL, SETTINGS)
  draws = draw_batch(jax.random.key(3), jnp.arange(4), small.MODEL.backbone)
  numbers = reveal.numbers_for(static.plan, SETTINGS)
  return static, (small.params(), jnp.arange(4), draws, numbers)


OTHERS = {"guidance_scale": 3.0, "temperature": 0.9}


@pytest.mark.parametrize(
  ("experiment", "settings", "others"),
  [
    (small.EXPERIMENT, SETTINGS, OTHERS),
    (small.of_kind("raster"), None, OTHERS | {"head": {"start": 800}}),
    (
      small.of_kind("guided", is_coded=True),
      None,
      OTHERS | {"head": {"top_k": 5, "top_p": 0.5}},
    ),
  ],
  ids=["masked", "raster", "guided, codes"],
)
def test_one_trace_per_segment_and_none_on_a_second_call(
  monkeypatch, experiment, settings, others
):
  traced, original = [], reveal._next_z

  def counted(static, params, segment, *args):
    traced.append(segment)
    return original(static, params, segment, *args)

  monkeypatch.setattr(reveal, "_next_z", counted)
  pipe = on(jax.devices()[:1], experiment)
  pipe.generate([0, 1], settings=settings)
  plan, programs = pipe.plan(settings), len(pipe.programs)
  assert traced == list(plan.segments)
  # And one each to draw, begin, finish and decode.
  assert programs == len(plan.segments) + 4
  other = pipe.settings(settings).changed(others)
  pipe.generate([2, 3], seed=9, settings=other)
  assert traced == list(plan.segments)
  assert len(pipe.programs) == programs


def on(devices, experiment) -> Pipeline:
  mesh, params = (
    make_mesh(devices=devices),
    small.params(model=experiment.model),
  )
  codec_params = {}
  if experiment.codec.has_params():
    codec_params = experiment.codec.init_params(jax.random.key(0))
  return Pipeline.of_experiment(experiment, params, mesh, 0, codec_params)


def scans(jaxpr, inside=False):
  """Every equation inside a scan, with nested ones."""
  for equation in jaxpr.eqns:
    if inside:
      yield equation.primitive.name
    is_loop = inside or equation.primitive.name == "scan"
    for inner in jaxprs_in_params(equation.params):
      yield from scans(inner, is_loop)


def test_loops_only_slice():
  static, args = call()
  jaxpr = jax.make_jaxpr(reveal.generate, static_argnums=0)(static, *args)
  names = set(scans(jaxpr.jaxpr))
  assert "dynamic_slice" in names
  assert "dynamic_update_slice" in names
  forbidden = [n for n in names if re.search("scatter|sort|callback|cond", n)]
  assert not forbidden


def test_the_head_runs_on_the_tokens_to_predict():
  static, args = call()
  at_once = SETTINGS.changed({"num_ar_steps": 1, "num_buckets": 1})
  wide = reveal.static_for(small.MODEL, at_once)
  steps = flops.count(lambda *a: reveal.generate(static, *a), *args)
  widths = [s.head_width * len(s.num_known) for s in static.plan.segments]
  assert sum(widths) < 1.5 * 16
  one = (*args[:3], reveal.numbers_for(wide.plan, at_once))
  once = flops.count(lambda *a: reveal.generate(wide, *a), *one)
  # Six steps on all 16 positions would cost the head six times over.
  assert steps < 3.5 * once


@pytest.mark.parametrize(
  ("experiment", "settings"),
  [
    (small.EXPERIMENT, SETTINGS),
    (small.of_kind("raster"), None),
    (small.of_kind("guided", is_coded=True), {"head": {"top_p": 0.9}}),
  ],
  ids=["masked", "raster", "guided, codes"],
)
def test_data_parallel_generation_needs_no_collectives(experiment, settings):
  pipe = on(jax.devices()[:8], experiment)
  compiled = compiled_text(pipe, pipe.settings(settings))
  found = re.findall(r"\b(all-reduce|all-gather|all-to-all)\b", compiled)
  assert not found
  # Nor does anything come to the host before the end.
  assert not re.findall(r"\b(infeed|outfeed|send|recv)\b|callback", compiled)


def compiled_text(pipe: Pipeline, settings: Settings) -> str:
  """The HLO of every segment that the pipeline runs on its mesh."""
  static = reveal.static_for(pipe.card.model, settings)
  asked = (jnp.arange(8), pipe.draws(0, 8), None)
  *numbers, walks = batching.numbers(pipe.mesh, static.plan, settings)
  texts = []
  with jax.set_mesh(pipe.mesh):
    first = (pipe.params, *batching.place(pipe.mesh, asked))
    begun = Program(batching.begin, (static,), first).lowered().compile()
    texts.append(begun.as_text())
    carry, fixed = begun(*first)
    for index, walk in enumerate(walks):
      program = batching.segment_program(
        static, index, pipe.params, carry, fixed, *numbers, walk
      )
      texts.append(program.lowered().compile().as_text())
    last = (carry, fixed)
    ended = Program(reveal.finish, (), last).lowered().compile()
    texts.append(ended.as_text())
  return "\n".join(texts)
