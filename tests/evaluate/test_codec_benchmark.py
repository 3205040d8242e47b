"""The autoencoder's benchmark measures what its columns say."""

import json
import pathlib

import jax
import numpy as np
import pytest

from benchmarks import codec, timing
from marjax.latents.kl import KLConfig

ROOT = pathlib.Path(__file__).parents[2]
SMALL = KLConfig(
  image_size=8,
  base_width=32,
  multipliers=(1, 2),
  num_blocks=1,
  latent_channels=4,
)
ALL = [variant for pair in codec.VARIANTS.values() for variant in pair]


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(codec, "KL16", SMALL)
  monkeypatch.setattr(timing, "ROUND_SECONDS", 1e-3)


def test_kl16_is_what_is_timed():
  assert codec.KL16.latent_shape == (16, 16, 16)
  assert codec.KL16.image_size == 256


def test_latents_are_of_unit_variance_and_pixels_in_range():
  params, latents = codec.inputs(SMALL, "decode", 64)
  assert set(params) == {"from_latents", "decoder"}
  assert latents.shape == (64, *SMALL.latent_shape)
  assert latents.std() == pytest.approx(1, abs=0.05)
  params, images = codec.inputs(SMALL, "encode", 2)
  assert set(params) == {"encoder", "to_moments"}
  assert images.shape == (2, 8, 8, 3)
  assert -1 <= images.min() < images.max() <= 1


@pytest.mark.parametrize("variant", ALL, ids="-".join)
def test_variants_override_the_default_precision(variant):
  arguments = codec.inputs(SMALL, "decode", 1)
  text = codec.lower(SMALL, "decode", variant, *arguments).as_text()
  assert ("HIGHEST" in text) == (variant.precision == "highest")
  assert ("bf16" in text) == (variant.dtype == "bfloat16")


def test_differences_are_in_levels_of_images_and_in_units_of_latents():
  reference = np.array([3.0, -4.0, 3.0, -4.0], np.float32)
  result = reference + np.array([0, 0, 0, 2], np.float32)
  found = codec.difference("decode", result, reference)
  assert found["error_unit"] == "uint8 levels"
  assert found["error_rms"] == pytest.approx(127.5)
  assert found["error_max"] == pytest.approx(255)
  assert found["error_relative"] == pytest.approx(1 / 12.5**0.5)
  assert found["result_rms"] == pytest.approx(127.5 * 12.5**0.5)
  assert found["result_std"] == pytest.approx(127.5 * 3.5)
  found = codec.difference("encode", result, reference)
  assert found["error_unit"] == "latents"
  assert found["error_rms"] == pytest.approx(1)


def test_rows_are_appended_with_their_errors(quick, tmp_path, capsys):
  out = tmp_path / "new" / "codec.jsonl"
  flags = ["--batch_size", "2", "--repeats", "2", "--out", str(out)]
  assert codec.main([*flags, "--tasks", "decode"]) == 0
  assert codec.main([*flags, "--tasks", "encode", "--dtypes", "bfloat16"]) == 0
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  found = [(row["task"], row["dtype"], row["matmul_precision"]) for row in rows]
  assert found == [
    ("decode", "float32", "highest"),
    ("decode", "float32", "default"),
    ("decode", "bfloat16", "default"),
    ("encode", "bfloat16", "default"),
  ]
  for row in rows:
    assert row["seconds_fastest"] <= row["seconds"] <= row["seconds_slowest"]
    assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
    assert row["repeats"] == 2
    assert row["versions"]["jax"] == jax.__version__
    assert row["device"]["platform"] == "cpu"
    assert 0.1 < row["result_std"] <= row["result_rms"]
  assert rows[0]["error_max"] == 0
  for row in (rows[2], rows[3]):
    assert 1e-4 < row["error_relative"] < 0.1
  assert len({row["flops"] for row in rows[:3]}) == 1
  assert len(capsys.readouterr().out.splitlines()) == 4


def test_wrong_flags_are_one_sentence(tmp_path, capsys):
  out = ["--out", str(tmp_path / "codec.jsonl")]
  assert codec.main([*out, "--tasks", "sleep"]) == 2
  assert codec.main([*out, "--dtypes", "float16"]) == 2
  assert codec.main([*out, "--repeats", "0"]) == 2
  assert codec.main([*out, "--batch_size", "-1"]) == 2
  said = capsys.readouterr().err
  assert "no task 'sleep'; expected some of decode, encode." in said
  assert "no dtype 'float16'; expected some of float32, bfloat16." in said
  assert "--repeats: it is '0'; expected a whole number, 1" in said
  assert "--batch_size: it is '-1'; expected a whole number, 1" in said
  assert not (tmp_path / "codec.jsonl").exists()
