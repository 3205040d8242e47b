"""Every config is a short document, and builds with its variants."""

import ast
import dataclasses
import re
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from marjax.cli import configs
from marjax.model import param_shapes

ROOT = Path(__file__).parents[2]
CONFIGS = [
  path
  for path in sorted((ROOT / "configs").glob("*.py"))
  if "def get_config(" in path.read_text()  # others are what configs share
]


@pytest.fixture
def overrides(tmp_path):
  """By a config's name what must be said besides: where pictures are."""
  for name in "ab":
    (tmp_path / name).mkdir()
    for i in range(20):
      pixels = np.full((16, 16, 3), 10 * i, np.uint8)
      Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
  return {"folder": [f"config.data.data_dir={tmp_path}"]}


def variants(path: Path) -> list[str]:
  """The names after a colon that open a line of the docstring."""
  docstring = ast.get_docstring(ast.parse(path.read_text()))
  return re.findall(r"(?:^|\s{2,}):(\w+)\s", docstring)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_says_what_it_is(path):
  docstring = ast.get_docstring(ast.parse(path.read_text()))
  for heading in ("Command", "Cost", "Expected", "Variants"):
    assert re.search(rf"^{heading} +\S", docstring, re.MULTILINE), heading
  assert "laptop" in variants(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_and_its_variants_build(path, overrides):
  said = overrides.get(path.stem, [])
  experiments = {
    variant: configs.load(f"{path}:{variant}", said)
    for variant in ["", *variants(path)]
  }
  assert experiments[""].name == path.stem
  assert len(set(experiments.values())) == len(experiments)
  for experiment in experiments.values():
    hash(experiment)
    experiment.model.build()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_unknown_variant_is_refused(path):
  with pytest.raises(ValueError, match="no variant 'nonsense'; expected"):
    configs.load(f"{path}:nonsense")


CELLS = ("ar_raster", "ar_random", "mar_one", "mar", "guided")


def cells(name: str, *kinds: str):
  """Experiments of those cells of a config, by variant."""
  return {
    cell: configs.load(f"{ROOT}/configs/{name}.py:{cell}") for cell in kinds
  }


def num_parameters(experiment) -> int:
  shapes = nn.unbox(param_shapes(experiment.model))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", ["digits", "table1", "cifar10", "photos64"])
def test_neighbours_in_table_1_differ_in_their_tokens_alone(name):
  left = cells(name, *CELLS)
  right = cells(name, *(f"{cell}_ce" for cell in CELLS))
  for one, other in zip(left.values(), right.values(), strict=True):
    backbone, codes = one.model.backbone, other.model.backbone
    assert (backbone.num_codes, codes.num_codes) == (0, other.codec.num_codes)
    floats = dataclasses.replace(
      codes, num_codes=0, token_dim=backbone.token_dim
    )
    assert floats == backbone
    assert one.model.head.kind == "diffusion"
    assert other.model.head.kind == "categorical"
    schedule = one.training.schedule
    assert schedule == ("constant" if name == "table1" else "cosine")
    assert other.training.schedule == "cosine"
    assert one.training == dataclasses.replace(
      other.training, schedule=schedule
    )
    assert one.sampling == dataclasses.replace(
      other.sampling, head=one.sampling.head
    )


@pytest.mark.parametrize("name", ["digits", "table1", "cifar10", "photos64"])
def test_one_training_is_both_cells_of_the_masked_model(name):
  for end in ("", "_ce"):
    one, several = cells(name, f"mar_one{end}", f"mar{end}").values()
    length = one.model.backbone.num_tokens
    assert one.sampling.num_ar_steps == length
    assert several.sampling.num_ar_steps < length
    assert one == dataclasses.replace(
      several, sampling=one.sampling, name=one.name
    )


@pytest.mark.parametrize("end", ["", ",", "_ce", "_ce,laptop"])
def test_larger_photographs_have_steps_and_codes_of_their_own(end):
  names = [cell + end for cell in CELLS]
  if "_ce" not in end:
    names += [kind + end for kind in ("", "flow", "regression")]
  for name, one in cells("photos64", *names).items():
    assert one.name.startswith("photos64")
    codes = "out/photos64_codes" if "_ce" in end else ""
    assert one.data.autoencoder == codes
    if "laptop" not in end:
      draws_one = name.startswith(("ar_", "mar_one"))
      assert one.sampling.num_ar_steps == (256 if draws_one else 64)


def test_a_wrong_variant_is_of_the_config_that_was_asked():
  with pytest.raises(ValueError, match=r"photos64\.py has no variant 'flov'"):
    configs.load(f"{ROOT}/configs/photos64.py:flov")


def test_adapters_have_no_tiny_run():
  with pytest.raises(ValueError, match="need a model to start from; expected"):
    configs.load(f"{ROOT}/configs/finetune.py:lora,laptop")


def test_cells_of_the_digits_are_of_one_size():
  text = ast.get_docstring(
    ast.parse((ROOT / "configs" / "digits.py").read_text())
  )
  text = text.replace("\n", " ")
  for end in ("", "_ce"):
    counts = {
      num_parameters(one)
      for one in cells("digits", *(cell + end for cell in CELLS)).values()
    }
    assert len(counts) == 3
    middle = (min(counts) + max(counts)) / 2
    assert max(counts) <= 1.03 * middle
    for count in counts:
      assert f"{count:,}".replace(",", " ") in text


def test_published_cells_are_as_large_as_they_say():
  text = (ROOT / "configs" / "table1.py").read_text()
  for end in ("", "_ce"):
    for name, one in cells("table1", *(c + end for c in CELLS)).items():
      said = re.search(rf"^  :{name} .*?(\d+\.\d) ", text, re.MULTILINE)
      assert float(said[1]) == round(num_parameters(one) / 1e6, 1)
