"""The precision benchmark compares like with like, and finds what it should."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from benchmarks import fitting, precision

SETTINGS = small.EXPERIMENT.sampling.changed(
  {"num_ar_steps": 2, "head": {"num_steps": 100}}
)


def from_start(start, **changes):
  return SETTINGS.changed({"head": {"start": start, **changes}})


def test_the_first_step_multiplies_what_it_should():
  assert precision.amplification(from_start(999)) == pytest.approx(
    316, rel=0.01
  )
  fifty = from_start(999, num_steps=50)
  assert precision.amplification(fifty) == pytest.approx(632, rel=0.01)
  assert precision.amplification(from_start(950)) < 1


def test_the_error_after_the_first_step_is_the_amplified_one():
  settings, params = from_start(999), small.params()
  z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 32)), "float32")
  eps, x = zip(
    *(
      np.asarray(
        jax.jit(functools.partial(precision._first_step, config, settings))(
          params, z
        )
      )
      for config in (
        small.MODEL,
        small.MODEL.in_dtype("bfloat16"),
      )
    ),
    strict=True,
  )
  error, after = (np.std(b - a) for a, b in (eps, x))
  assert 1e-4 < error / np.std(eps[0]) < 0.05
  # The variance of the step is rounded too, which matters little.
  expected = error * precision.amplification(settings)
  assert after == pytest.approx(expected, rel=0.1)


def test_columns_are_errors_against_the_reference():
  reference = {"z": np.array([3.0, -4.0]), "tokens": np.linspace(-1, 1, 1001)}
  found = {"z": np.array([3.0, -4.5]), "tokens": reference["tokens"] + 0.5}
  row = precision.columns(found, reference)
  assert row["z_max"] == 4.5
  assert row["z_rms"] == pytest.approx(np.sqrt((9 + 4.5**2) / 2))
  assert row["z_error_rms"] == pytest.approx(0.5 / np.sqrt(2))
  assert row["z_error_max"] == 0.5
  assert row["tokens_mean"] == pytest.approx(0.5)
  assert row["tokens_error_rms"] == pytest.approx(0.5)
  assert row["tokens_quantiles"]["0.9"] == pytest.approx(1.3)


def test_wrong_flags_are_one_sentence(tmp_path, capsys):
  out = ["--out", str(tmp_path / "rows.jsonl")]
  assert precision.main([*out, "--sizes", "giant"]) == 2
  assert "no size 'giant'" in capsys.readouterr().err
  assert precision.main([*out, "--checkpoint", str(tmp_path)]) == 2
  assert "expected a released checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_rows_start_with_the_reference(tmp_path):
  params = {
    **small.params(),
    "head": fitting.fitted(small.MODEL, small.params(0.0)["head"], 20),
  }
  last = params["head"]["net"]["final_linear"]["kernel"]
  assert float(jnp.abs(last).max()) > 0
  quick = from_start(950, num_steps=10).changed({"num_ar_steps": 1})
  subject = fitting.Subject("small", small.MODEL, params, quick)
  first, second = precision.measure(subject, [950], 2)
  json.dumps([first, second])
  assert (first["dtype"], second["dtype"]) == ("float32", "bfloat16")
  for name in ("z", "eps", "first_step", "tokens"):
    assert first[f"{name}_error_rms"] == 0
    assert second[f"{name}_error_rms"] > 0
    assert second[f"{name}_rms"] == pytest.approx(first[f"{name}_rms"], rel=0.1)
