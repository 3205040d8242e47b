"""Several devices compute what one does, and it is seen where they do not."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks import same_numbers
from experiments import rows

FLAGS = ["--devices", "4", "--num_steps", "3", "--batch_size", "16"]
FLAGS += ["--num_images", "4", "--model", "tiny"]


def check(*flags):
  return same_numbers.main([*FLAGS, *flags])


@pytest.mark.slow
def test_meshes_compute_what_one_device_does(tmp_path, capsys):
  out = tmp_path / "rows.jsonl"
  assert check("--out", str(out)) == 0
  assert capsys.readouterr().out.endswith("\nthe same numbers\n")
  table = rows.read(out)
  assert [(row["mesh"], row["dtype"]) for row in table] == [
    ("dp on 4", "float32"),
    ("fsdp on 4", "float32"),
    ("dp on 4", "bfloat16"),
    ("fsdp on 4", "bfloat16"),
  ]
  for row in table:
    # Other orders of sums are seen, so it was not one mesh twice.
    assert max(row["apart"].values()) > 0
    assert row["bounds"].keys() == row["apart"].keys()
  # Without a GPU it is plain code.
  assert [row.get("kernels") for row in table] == [None, None, False, False]


@pytest.mark.slow
def test_every_parameter_counts():
  experiment = same_numbers.experiment_of(same_numbers.MODELS["tiny"], 16)
  (mesh, *_) = same_numbers.meshes([1]).values()
  run = same_numbers.train(experiment, mesh, 1)
  silent = [
    jax.tree_util.keystr(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.gradient)
    if not np.any(leaf)
  ]
  # "No class" is asked of a tenth of the images, and of none of these.
  assert silent == ["['backbone']['class_embedding']['fake_latent']"]


RUN = same_numbers.Run(
  np.array([1.0, 0.9, 0.8]),
  np.array([3.0, 2.0, 1.0]),
  {"kernel": np.array([0.6, 0.8])},
  {"kernel": np.ones(2)},
)
IMAGES = np.linspace(-1, 1, 4)


@pytest.fixture
def perturbed(monkeypatch):
  """Sets what meshes of several devices give instead of RUN and IMAGES."""

  def give(images=IMAGES, dtype="float32", **changes):
    other = dataclasses.replace(RUN, **changes)

    def train(experiment, mesh, num_steps):
      is_changed = experiment.model.head.dtype == dtype
      return other if mesh.size > 1 and is_changed else RUN

    monkeypatch.setattr(same_numbers, "train", train)
    monkeypatch.setattr(
      same_numbers,
      "generate",
      lambda _, mesh, *__: images if mesh.size > 1 else IMAGES,
    )

  return give


@pytest.mark.parametrize(
  "changes",
  [
    {"losses": np.array([1.0, 0.9, 0.8 * (1 + 2e-4)])},
    {"losses": np.array([1.0, np.nan, 0.8])},
    {"gradient_norms": np.array([3.0, 2.0, 1.0 - 2e-4])},
    {"images": IMAGES + 2e-4},
    {"dtype": "bfloat16", "losses": np.array([1.01, 0.9, 0.8])},
    {"dtype": "bfloat16", "gradient": {"kernel": np.array([0.62, 0.8])}},
  ],
)
def test_a_difference_is_seen(perturbed, changes, capsys):
  perturbed(**changes)
  assert check() == 1
  said = capsys.readouterr().out
  assert said.endswith("\nNOT the same numbers\n")
  assert said.count("; above {") == 2


def test_rounding_is_none(perturbed):
  perturbed(
    images=IMAGES + 5e-5,
    losses=RUN.losses * (1 + 5e-5),
    # Those AdamW may make of rounding.
    params={"kernel": np.full(2, 2.0)},
  )
  assert check() == 0
  assert check("--tolerance", "1e-5") == 1


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--devices", "1"], "expected several"),
    (["--devices", "two"], "expected numbers from 1 to 8"),
    (
      ["--num_steps", "0"],
      "--num_steps: it is '0'; expected a whole number, 1",
    ),
  ],
)
def test_wrong_flags_are_one_sentence(flags, message, capsys):
  assert same_numbers.main(flags) == 2
  assert message in capsys.readouterr().err
