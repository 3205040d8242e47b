"""Reveal schedules and mask ratios against the published program."""

import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
import small

from marjax.generate import guidance
from marjax.tokens.masking import MaskConfig
from marjax.tokens.schedule import num_known_before

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "ar_schedule.json"
THEIRS = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize(
  "name", [name for name in THEIRS if "crashes" not in THEIRS[name]]
)
def test_reveal_schedule(name):
  theirs = THEIRS[name]
  length, steps = map(int, re.findall(r"\d+", name))
  known = num_known_before(length, steps)
  assert [length - k for k in known[:-1]] == theirs["masked_before"]
  assert np.diff(known).tolist() == theirs["num_predicted"]
  plan = small.plan(length, steps, 4)
  np.testing.assert_allclose(
    guidance.scales(plan, 3.0, "linear"),
    theirs["cfg_iter_linear_cfg3"],
    rtol=1e-6,
  )


@pytest.mark.parametrize(
  "name", [name for name in THEIRS if "crashes" in THEIRS[name]]
)
def test_more_steps_than_tokens_is_refused(name):
  length, steps = map(int, re.findall(r"\d+", name))
  with pytest.raises(ValueError, match="each step reveals at least one"):
    num_known_before(length, steps)


def test_mask_ratio_quantiles(golden):
  theirs = golden("mask_rate.npz")
  ours = MaskConfig().ratio(jnp.asarray(theirs["q"], jnp.float32))
  np.testing.assert_allclose(ours, theirs["ppf"], atol=2e-6)
