"""What is not typed is derived, printed as it could be typed, and kept."""

import json
import logging
import re
import shlex
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import marjax
from marjax.cli import configs, main
from marjax.train import derived

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "folder.py")


def add(root, name, count, side=32):
  for i in range(count):
    rng = np.random.default_rng(i)
    (root / name).mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.fixture
def photos(tmp_path, monkeypatch):
  """60 pictures of two classes, in the folder where commands run."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(derived, "_flops_per_second", lambda: 1e10)
  add(tmp_path / "photos", "golden hour", 40)
  add(tmp_path / "photos", "sea", 20)
  return tmp_path / "photos"


@pytest.fixture
def lines(caplog):
  """A function: the flags that were printed since it was called last."""
  caplog.set_level(logging.INFO, "marjax")

  def printed() -> list[str]:
    found = re.findall(r"^  ('?--config\..*)$", caplog.text, re.M)
    caplog.clear()
    words = [shlex.split(line, comments=True) for line in found]
    assert all(len(line) == 1 for line in words)
    return [line[0].removeprefix("--") for line in words]

  return printed


TYPED = ["config.data.data_dir=photos", "config.image_size=32"]


def test_products_are_of_the_type_that_suits_the_machine(photos, monkeypatch):
  model = configs.load(CONFIG, TYPED).model
  assert model.backbone.dtype == model.head.dtype == "float32"
  monkeypatch.setattr(derived, "_sizes", lambda name: derived.ACCELERATOR)
  model = configs.load(CONFIG, TYPED).model
  assert model.backbone.dtype == model.head.dtype == "bfloat16"


def test_all_that_is_derived_can_be_typed(photos, lines):
  first = configs.load(CONFIG, TYPED)
  flags = lines()
  keys = [flag.partition("=")[0] for flag in flags]
  assert len({*keys}) == len(keys) > 20
  assert configs.load(CONFIG, [*TYPED, *flags]) == first
  assert lines() == []


def test_what_is_derived_fits_the_pictures_and_the_machine(photos):
  one = configs.load(CONFIG, TYPED)
  backbone = one.model.backbone
  sizes = one.data.image_size, one.codec.image_size, one.codec.patch
  assert sizes == (32, 32, 4)
  assert (backbone.num_tokens, backbone.token_dim) == (64, 48)
  assert backbone.condition.num_classes == one.data.num_classes == 2
  assert (one.data.test_split, one.data.test_share) == ("test", 0.1)
  assert one.codec.mean == pytest.approx(0, abs=0.02)
  assert one.codec.std == pytest.approx(0.58, abs=0.02)
  assert 48 <= one.training.batch_size <= 60
  assert one.sampling.guidance_scale > 1


def test_a_typed_value_is_kept_and_others_follow(photos):
  one = configs.load(CONFIG, [*TYPED, "config.codec.patch=8"])
  assert (one.model.backbone.num_tokens, one.model.head.token_dim) == (16, 192)
  assert one.sampling.num_ar_steps == 16
  with pytest.raises(ValueError, match=r"codec\.patch is 5; expected a div"):
    configs.load(CONFIG, [*TYPED, "config.codec.patch=5"])
  one = configs.load(CONFIG, [*TYPED, "config.training.total_epochs=3"])
  assert one.training.num_steps is None


def test_a_start_from_a_model_keeps_its_scale_and_its_shapes(
  photos, tmp_path, monkeypatch
):
  add(tmp_path / "other", "sun", 50, side=64)
  typed = ["config.data.data_dir=other", "config.image_size=64"]
  alone = configs.load(CONFIG, typed)
  shape = ["config.codec.mean=0.25", "config.model.backbone.width=64"]
  before = configs.load(CONFIG, [*TYPED, *shape])
  card = types.SimpleNamespace(codec=before.codec, model=before.model)
  source = types.SimpleNamespace(card=card)
  monkeypatch.setattr(derived.initial, "load", lambda *names: source)
  one = configs.load(CONFIG, [*typed, "config.training.init_from=out/mine"])
  assert (one.codec.mean, one.model.backbone.width) == (0.25, 64)
  assert (alone.codec.patch, one.codec.patch) == (8, 4)
  assert (one.model.backbone.num_tokens, one.codec.image_size) == (256, 64)
  assert one.model.backbone.condition.num_classes == 1


def test_without_class_folders_there_are_no_classes(photos, tmp_path):
  typed = ["config.data.data_dir=photos/sea", *TYPED[1:]]
  one = configs.load(CONFIG, typed)
  assert one.data.num_classes == one.model.backbone.condition.num_classes == 0
  assert one.sampling.guidance_scale == 1


def test_steps_follow_the_speed(photos, monkeypatch):
  slow = configs.load(CONFIG, TYPED).training
  monkeypatch.setattr(derived, "_flops_per_second", lambda: 1e11)
  fast = configs.load(CONFIG, TYPED).training
  assert fast.num_steps > slow.num_steps
  views = fast.num_steps * fast.batch_size / 54
  assert views <= 1.2 * derived.VIEWS


def test_the_size_is_said_once_and_is_a_size(photos):
  with pytest.raises(ValueError, match="expected one of them"):
    configs.load(CONFIG, [*TYPED, "config.data.image_size=16"])
  for wrong in ("0", "big", "1.5"):
    with pytest.raises(ValueError, match=r"image_size is .*; expected"):
      configs.load(CONFIG, [TYPED[0], f"config.image_size={wrong}"])


def test_too_few_pictures_are_refused(photos, tmp_path):
  add(tmp_path / "one", "class", 1)
  with pytest.raises(ValueError, match="has 1 pictures to train on; expected"):
    configs.load(CONFIG, ["config.data.data_dir=one", "config.image_size=32"])


@pytest.mark.parametrize(
  ("size", "across", "patch"),
  [(64, 8, 8), (64, 16, 4), (32, 8, 4), (28, 8, 4), (8, 8, 1), (31, 8, 1)],
)
def test_patch(size, across, patch):
  assert derived.patch_of(size, across) == patch


@pytest.mark.parametrize(("number", "result"), [(0.2, 1), (7, 7), (1234, 1200)])
def test_rounded(number, result):
  assert derived.rounded(number) == result


@pytest.mark.slow
def test_one_command_trains_goes_on_and_knows_the_names(
  photos, tmp_path, lines, caplog
):
  command = ["train", "--config", f"{CONFIG}:laptop", "--workdir", "out/mine"]
  command += [f"--{flag}" for flag in TYPED]
  assert main.main(command) == 0
  before = json.loads((tmp_path / "out/mine/config.json").read_text())
  assert lines()
  # With captions the page has lines of text between the pictures.
  with Image.open("out/mine/samples/step_00000004.png") as page:
    assert page.height > 2 * 32 * 3 + 40
  add(photos, "sea", 25)
  add(photos, "a new class", 3)
  assert main.main([*command, "--config.training.num_steps=6"]) == 0
  assert "pictures came since" in caplog.text
  assert "out/mine has begun" in caplog.text
  assert "resumed from step 4" in caplog.text
  assert lines() == []
  after = json.loads((tmp_path / "out/mine/config.json").read_text())
  assert after.pop("json_sha256") != before.pop("json_sha256")
  before["training"]["num_steps"] = 6
  assert after == before
  images = marjax.load("out/mine").generate(["golden hour", "sea"])
  assert images.shape == (2, 32, 32, 3)
