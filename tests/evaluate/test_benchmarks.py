"""Benchmarks count what they say and append what they measure."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import small

from benchmarks import run, sizes, timing, training
from marjax.train import flops

ROOT = pathlib.Path(__file__).parents[2]

# MAR's published parameter counts; the class table and positions included.
PUBLISHED_PARAMETERS = {"base": 207.9e6, "large": 478.3e6, "huge": 942.4e6}


def shaped(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_are_counted():
  matrices = shaped(3, 4), shaped(4, 5)
  assert flops.count(lambda a, b: a @ b, *matrices) == 2 * 3 * 4 * 5
  batched = shaped(7, 3, 4), shaped(7, 4, 5)
  assert flops.count(lambda a, b: a @ b, *batched) == 7 * 2 * 3 * 4 * 5


def test_scans_count_their_length_and_branches_their_dearest():
  def body(carry, _):
    return jax.checkpoint(jnp.tanh)(carry @ carry), None

  def scanned(a):
    return jax.lax.scan(body, a, None, length=11)[0]

  assert flops.count(jax.jit(scanned), shaped(3, 3)) == 11 * 2 * 27
  assert (
    flops.count(
      lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a @ a),
      shaped(3, 3),
    )
    == 2 * 2 * 27
  )


def test_convolutions_are_counted():
  def convolve(image, kernel):
    return jax.lax.conv_general_dilated(
      image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  counted = flops.count(convolve, shaped(2, 8, 8, 3), shaped(3, 3, 3, 5))
  assert counted == 2 * (3 * 3 * 3) * (2 * 8 * 8 * 5)


def test_loops_of_unknown_length_are_refused():
  def loop(a):
    return jax.lax.while_loop(lambda b: b[0, 0] < 9, lambda b: b @ b, a)

  with pytest.raises(ValueError, match="expected loops of known length"):
    flops.count(loop, shaped(3, 3))


def abstract_params(size):
  from flax import linen as nn

  from marjax import keys
  from marjax.model import init_params

  config = sizes.experiment(size).model
  return jax.eval_shape(lambda: nn.unbox(init_params(config, keys.root(0))))


@pytest.mark.parametrize("size", PUBLISHED_PARAMETERS)
def test_published_sizes_have_the_published_parameters(size):
  counted = timing.count_parameters(abstract_params(size))
  assert counted["all"] == counted["backbone"] + counted["head"]
  assert counted["all"] == pytest.approx(PUBLISHED_PARAMETERS[size], rel=1e-3)


def test_a_forward_pass_counts_what_its_layers_multiply():
  # From the shapes alone: linears of encoder, decoder and head, per stratum.
  experiment = sizes.experiment("tiny", batch_size=4)
  c, head = experiment.model.backbone, experiment.model.head
  bounds = c.masking.known_bounds(c.num_tokens)
  slots = c.num_buffer + c.num_tokens

  def block(length):
    return length * 12 * c.width**2 + 2 * length**2 * c.width

  encoder = sum(
    c.encoder_depth * block(c.num_buffer + most) + most * c.token_dim * c.width
    for _, most in bounds
  )
  longest = c.num_buffer + max(most for _, most in bounds)
  decoder = c.decoder_depth * block(slots) + longest * c.width**2
  decoder *= len(bounds)
  tokens = sum(c.num_tokens - fewest for fewest, _ in bounds)
  w = head.width
  per_draw = 2 * head.token_dim * w + head.depth * 5 * w**2 + w**2 * 2
  per_draw += head.token_dim * w + 256 * w + w**2
  heads = tokens * (head.repeats * per_draw + c.width * w)
  groups = 4 // len(bounds)
  counted = flops.count(
    training.forward(experiment),
    abstract_params("tiny"),
    training.random_batch(experiment),
  )
  assert counted == pytest.approx(
    2 * groups * (encoder + decoder + heads), rel=0.02
  )


def test_digits_is_the_model_of_its_config():
  from marjax.cli import configs

  configured = configs.load("configs/digits.py")
  assert sizes.experiment("digits").model == configured.model


def test_sizes_have_variants_and_unknown_ones_are_refused():
  found = sizes.experiment("base", batch_size=8, dtype="bfloat16")
  assert found.training.batch_size == 8
  assert found.model.head.dtype == found.model.backbone.dtype == "bfloat16"
  with pytest.raises(ValueError, match="no size 'giant'; expected one of tiny"):
    sizes.experiment("giant")


def test_rounds_time_single_calls(monkeypatch):
  """Each call takes a thousandth of a second, by a clock of the test's."""
  calls = []
  monkeypatch.setattr(timing.time, "perf_counter", lambda: 1e-3 * len(calls))

  def call():
    calls.append(0)
    return jnp.zeros(3)

  seconds = timing.rounds(call, repeats=3)
  assert seconds == pytest.approx([1e-3] * 3)
  assert len(calls) == 2 + 3 * timing.MAX_CALLS
  timing.rounds(call, repeats=1, round_seconds=7e-3)
  assert len(calls) == 2 + 3 * timing.MAX_CALLS + 2 + 7


def fake_task(experiment, repeats, is_split):
  return {
    "seconds": 0.5,
    "images_per_second": 2 * experiment.training.batch_size,
    "tflops_per_second": 1.0,
    "compile_seconds": 3.0,
    "first_call_seconds": 4.0,
    "share_of_floor": 0.25,
    "is_split": is_split,
    "num_ar_steps": experiment.sampling.num_ar_steps,
    "repeats": repeats,
  }


def test_rows_are_appended_with_where_they_were_measured(tmp_path, monkeypatch):
  monkeypatch.setattr(run, "TASKS", {"train": fake_task, "generate": fake_task})
  out = tmp_path / "new" / "rows.jsonl"
  flags = ["--batch_size", "8", "--num_ar_steps", "3", "--out", str(out)]
  assert run.main([*flags, "--sizes", "tiny,base"]) == 0
  assert run.main([*flags, "--sizes", "tiny", "--tasks", "train"]) == 0
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  assert [(row["task"], row["size"]) for row in rows] == [
    ("train", "tiny"),
    ("generate", "tiny"),
    ("train", "base"),
    ("generate", "base"),
    ("train", "tiny"),
  ]
  for row in rows:
    assert row["batch_size"] == 8
    assert row["num_ar_steps"] == 3
    assert row["versions"]["jax"] == jax.__version__
    assert row["device"]["platform"] == "cpu"


def test_split_and_cache_are_passed_on_and_said(tmp_path, monkeypatch):
  monkeypatch.setattr(run, "TASKS", {"train": fake_task})
  said = {}
  monkeypatch.setattr(jax.config, "update", said.__setitem__)
  out, folder = tmp_path / "rows.jsonl", tmp_path / "programs"
  flags = ["--sizes", "tiny", "--tasks", "train", "--out", str(out)]
  run.main(flags)
  assert said == {}
  run.main([*flags, "--split", "--cache", str(folder)])
  said_flags = "sizes=tiny,tasks=train,dtype=float32,data=pixels,head=diffusion"
  own = folder / said_flags
  assert said["jax_compilation_cache_dir"] == str(own)
  assert said["jax_persistent_cache_min_compile_time_secs"] == 0
  (own / "program").touch()
  run.main([*flags, "--cache", str(folder)])
  run.main([*flags, "--dtype", "bfloat16", "--cache", str(folder)])
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  assert [row.get("cache") for row in rows] == [None, "cold", "warm", "cold"]
  assert [row["is_split"] for row in rows] == [False, True, False, False]


def test_wrong_flags_are_one_sentence(tmp_path, capsys):
  out = ["--out", str(tmp_path / "rows.jsonl")]
  assert run.main([*out, "--sizes", "giant"]) == 2
  assert run.main([*out, "--tasks", "sleep"]) == 2
  assert run.main([*out, "--repeats", "0"]) == 2
  assert run.main([*out, "--sizes", "tiny", "--data", "latents"]) == 2
  said = capsys.readouterr().err
  assert "no size 'giant'" in said
  assert "no task 'sleep'; expected some of train, generate" in said
  assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", run.TASKS)
def test_a_real_measurement(task, monkeypatch):
  monkeypatch.setattr(timing, "ROUND_SECONDS", 1e-3)
  experiment = dataclasses.replace(
    small.EXPERIMENT, sampling=small.EXPERIMENT.sampling.for_model(small.MODEL)
  )
  row = run.measure(task, "small", experiment, repeats=1, is_split=True)
  json.dumps(row)
  assert row["seconds_fastest"] <= row["seconds"] <= row["seconds_slowest"]
  assert row["images_per_second"] == pytest.approx(16 / row["seconds"])
  assert 0 < row["compile_seconds"] <= row["first_call_seconds"]
  assert 0 < row["needed_head_flops"] < row["needed_flops"] < row["flops"]
  assert min(row["seconds_transformer"], row["seconds_head"]) > 0
  parts = [row[f"seconds_{name}"] for name in ("transformer", "head", "rest")]
  assert sum(parts) == pytest.approx(row["seconds"])
  assert row["memory_bytes"] > 4 * row["parameters"]["all"]


def test_nothing_but_jax_flax_and_optax_is_imported():
  # An accelerator machine may have no more than these.
  code = """
import sys
for name in ("clu", "ml_collections", "tensorflow_datasets", "grain",
             "tensorboard", "sklearn", "matplotlib", "PIL", "tqdm"):
  sys.modules[name] = None
from benchmarks import codec, moved, run, same_numbers, scaling
"""
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
