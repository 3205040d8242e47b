"""What backbones with a cache need, and read, counted by hand."""

import dataclasses
import itertools

import jax
import pytest
import small

from benchmarks import floors, generation, needed, run, sizes, timing, training
from marjax import keys
from marjax.backbone.causal import CausalConfig
from marjax.backbone.guided import GuidedConfig
from marjax.generate import reveal
from marjax.generate.draws import draw_batch
from marjax.generate.settings import Settings
from marjax.head.reverse import ReverseSettings
from marjax.model import ModelConfig
from marjax.train import flops

WIDTH, LENGTH, DIM = 32, 16, 4
SHAPE = {
  "num_tokens": LENGTH,
  "token_dim": DIM,
  "width": WIDTH,
  "num_heads": 4,
  "condition": small.MODEL.backbone.condition,
}
CAUSAL = CausalConfig(**SHAPE, depth=2, order="random", num_prefix=3)
GUIDED = GuidedConfig(**SHAPE, memory_depth=2, query_depth=3, num_prefix=2)
BOTH = pytest.mark.parametrize("backbone", [CAUSAL, GUIDED])
STEPS = 5
"""Of the guided backbone, with 2 evaluations of the head."""


def static_of(backbone, **changes):
  settings = Settings(guidance_scale=2.0, head=ReverseSettings(num_steps=2))
  if not backbone.is_sequential:
    settings = dataclasses.replace(settings, num_ar_steps=STEPS)
  settings = dataclasses.replace(settings, **changes)
  model = ModelConfig(backbone, small.MODEL.head)
  return reveal.static_for(model, settings.for_model(model))


def done(static, batch):
  """FLOPs of the programs that generate a batch."""
  shaped, config = jax.ShapeDtypeStruct, static.config
  labels = shaped((batch,), "int32")
  draws = jax.eval_shape(
    lambda ids: draw_batch(keys.root(0), ids, config.backbone), labels
  )
  scales = shaped((static.plan.num_ar_steps,), "float32")
  count = len(static.plan.segments)
  walks = [needed.walk_of(static, index) for index in range(count)]
  temperature = shaped((), "float32")
  params = needed.abstract_params(config)
  inputs = generation.Inputs(params, labels, draws, scales, temperature, walks)
  return generation.count_flops(static, inputs)


@pytest.mark.slow
@BOTH
def test_exact_lengths_do_what_is_needed(backbone):
  exact = static_of(backbone, num_buckets=LENGTH)
  assert needed.of_generation(exact, 2)[0] == done(exact, 2)
  padded = static_of(backbone, num_buckets=1)
  assert needed.of_generation(padded, 2) == needed.of_generation(exact, 2)
  assert done(padded, 2) > 1.01 * done(exact, 2)


@pytest.mark.slow
@BOTH
def test_a_step_grows_linearly(backbone):
  static = static_of(backbone)
  step = needed._transformer(static, 1)
  new = 0 if backbone.is_sequential else 2
  shown = 1 if backbone.is_sequential else 3
  counts = [
    needed._step(static, 1, known, new, shown)
    - needed._sample(static, 1, shown)
    for known in (2, 5, 8, 11)
  ]
  assert counts == [step(known, new, shown) for known in (2, 5, 8, 11)]
  assert len({b - a for a, b in itertools.pairwise(counts)}) == 1
  # Two passes; of each look back a product with keys and one with values.
  blocks = {"causal": 2, "guided": 2 * new + 3 * shown}[backbone.kind]
  assert counts[1] - counts[0] == 3 * 2 * blocks * 2 * 2 * WIDTH


def test_training_needs_a_triangle():
  model = ModelConfig(CAUSAL, small.MODEL.head)
  prefix, depth = CAUSAL.num_prefix, CAUSAL.depth
  slots = prefix + LENGTH - 1
  seen = sum(range(prefix, prefix + LENGTH)) + (prefix - 1) ** 2
  linear = depth * slots * 12 * WIDTH**2 + (LENGTH - 1) * DIM * WIDTH
  total, head = needed.of_training(model, 4)
  assert total - head == 3 * 4 * 2 * (linear + depth * 2 * WIDTH * seen)
  assert head == 3 * 4 * needed._head_loss(model, LENGTH)


@pytest.mark.slow
@BOTH
def test_training_does_little_more_than_is_needed(backbone):
  model = ModelConfig(backbone, small.MODEL.head)
  experiment = dataclasses.replace(
    small.EXPERIMENT, model=model, sampling=Settings()
  )
  params = needed.abstract_params(model)
  batch = training.random_batch(experiment)
  forward = flops.count(training.forward(experiment), params, batch)
  count = experiment.training.batch_size
  assert 0.9 < needed.of_training(model, count)[0] / (3 * forward) < 1


def test_the_bytes_of_caches_by_hand():
  causal = static_of(CAUSAL)
  each = 2 * WIDTH * 4
  slots = sum(CAUSAL.num_prefix + known for known in range(LENGTH))
  # Both passes of seven images.
  assert floors.cache_bytes(causal, 7) == 2 * 7 * 2 * slots * each
  guided = static_of(GUIDED, guidance_scale=1.0)
  before = [n for part in guided.plan.segments for n in part.num_known]
  queries = sum(3 * (2 + known) for known in before)
  memory = sum(2 * (2 + known) for known in before[1:])
  assert floors.cache_bytes(guided, 7) == 7 * (queries + memory) * each
  short = dataclasses.replace(CAUSAL, dtype="bfloat16")
  assert floors.cache_bytes(static_of(short), 7) == 7 * 2 * slots * each * 2 / 2
  assert floors.cache_bytes(static_of(small.MODEL.backbone), 7) == 0


def test_the_bytes_of_weights_by_hand():
  static = static_of(CAUSAL)
  params = needed.abstract_params(static.config)
  head = static.config.head.width
  # Per block: linears with their biases; norms and tables are not products.
  block = 12 * WIDTH**2 + (3 + 1 + 4 + 1) * WIDTH
  backbone = CAUSAL.depth * block + DIM * WIDTH + WIDTH
  in_loop = 2 * (head**2 + head) + 2 * head
  in_loop += DIM * head + head + head * 2 * DIM + 2 * DIM
  others = WIDTH * head + 256 * head + head**2 + 3 * head
  others += 5 * (head**2 + head)
  per_step = 4 * (backbone + others + 2 * in_loop)
  assert floors.weight_bytes(static, params) == LENGTH * per_step
  # All in bfloat16 but the head's ends and norms, and the times.
  backbone = dataclasses.replace(CAUSAL, dtype="bfloat16")
  config = ModelConfig(backbone, static.config.head)
  halved = dataclasses.replace(static, config=config)
  fewer = floors.weight_bytes(static, params) - floors.weight_bytes(
    halved, params
  )
  assert fewer == LENGTH * 2 * (CAUSAL.depth * block + DIM * WIDTH + WIDTH)


def test_reads_add_up_beside_arithmetic(monkeypatch):
  monkeypatch.setattr(timing, "matmul_tflops", lambda: 1.0)
  monkeypatch.setattr(timing, "copy_gigabytes_per_second", lambda: 10.0)
  work = timing.Work(10**12, 10**12, 10**11, 6 * 10**9, 5 * 10**9)
  found = timing.floors(2.2, work)
  assert found["floor_matmul_seconds"] == pytest.approx(1.0)
  assert found["floor_weight_seconds"] == pytest.approx(0.6)
  assert found["floor_cache_seconds"] == pytest.approx(0.5)
  assert found["share_of_floor"] == pytest.approx(1.1 / 2.2)


# The paper says about 400 M of a model of size L with a head of 3 × 1024; here
# the head is 72 M, as of MAR-L.
PARAMETERS = {"causal_large": 404.6e6, "guided_large": 373.7e6}


@pytest.mark.slow
@pytest.mark.parametrize("size", PARAMETERS)
def test_cached_sizes_have_the_parameters_of_their_shape(size):
  config = sizes.experiment(size).model
  counted = timing.count_parameters(needed.abstract_params(config))
  assert counted["backbone"] == pytest.approx(PARAMETERS[size], rel=0.01)
  assert counted["head"] == pytest.approx(72.2e6, rel=0.01)


def test_the_arithmetic_of_a_causal_image():
  experiment = sizes.experiment("causal_large", head="flow")
  settings = experiment.sampling.changed(
    {"head": {"num_steps": 10}}, experiment.model
  )
  static = reveal.static_for(experiment.model, settings)
  total, head = needed.of_generation(static, 1)
  assert (total - head) / 1e12 == pytest.approx(0.42, abs=0.005)
  assert head / 1e12 == pytest.approx(7.15 / 10, rel=0.01)


@pytest.mark.parametrize("head", sizes.HEADS)
@pytest.mark.parametrize("size", ["large", "causal_large", "guided_large"])
def test_every_head_is_had(size, head):
  experiment = sizes.experiment(size, 8, "bfloat16", head=head)
  model = experiment.model
  assert model.head.kind == experiment.sampling.head.kind == head
  assert model.head.dtype == model.backbone.dtype == "bfloat16"
  loss = jax.eval_shape(
    training.forward(experiment),
    needed.abstract_params(model),
    training.random_batch(experiment),
  )
  assert loss.shape == ()


def test_a_flow_head_is_diffusions_with_half_the_output():
  plain, flow = (
    sizes.experiment("tiny", head=head).model.head
    for head in ("diffusion", "flow")
  )
  for name in ("width", "depth", "repeats", "token_dim"):
    assert getattr(plain, name) == getattr(flow, name)


def test_the_head_has_the_rows_of_the_loss():
  assert training._predicted(sizes.experiment("causal_large", 4)) == (4, 256)
  masked = sizes.experiment("tiny", batch_size=4)
  bounds = masked.model.backbone.masking.known_bounds(16)
  rows = sum(16 - fewest for fewest, _ in bounds)
  assert training._predicted(masked) == (2, rows)


def test_flags_choose_the_head_and_its_steps():
  flags = ["--head", "flow", "--num_diffusion_steps", "10"]
  args = run._flags([*flags, "--batch_size", "256"])
  found = run._experiment("guided_large", args)
  assert found.model.head.kind == "flow"
  assert (found.sampling.num_ar_steps, found.sampling.head.num_steps) == (
    64,
    10,
  )
  assert run._experiment("causal_large", args).sampling.num_ar_steps == 256


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (["--sizes", "tiny", "--head", "categorical"], "expected one of base"),
    (
      ["--sizes", "large", "--head", "categorical", "--split"],
      "expected a head of floats",
    ),
    (
      ["--sizes", "causal_large", "--num_ar_steps", "64"],
      "expected 256 or none",
    ),
  ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, capsys, flags, sentence):
  assert run.main([*flags, "--out", str(tmp_path / "rows.jsonl")]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("benchmarks.run: ")
  assert sentence in line
  with pytest.raises(ValueError, match="no head 'none'; expected one of diff"):
    sizes.experiment("tiny", head="none")
