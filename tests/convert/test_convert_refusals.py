"""What cannot be converted is one sentence, and nothing is left."""

from pathlib import Path

import numpy as np
import pytest

CHANGES = {
  "extra": ({"stranger": np.zeros(2, np.float32)}, "stranger is matched by 0"),
  "missing": ({"z_proj_ln.bias": None}, "backbone/embed_norm/bias is not fil"),
  "shape": (
    {"decoder_norm.weight": np.zeros(63, np.float32)},
    r"decoder_norm.weight has shape (63,), which does not become (64,)",
  ),
  "layer": (
    {"encoder_blocks.1.attn.proj.bias": None},
    "projection/bias (layers [1]) is not filled",
  ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_key_without_a_place_is_named(
  name, fails, save_sets, golden, tmp_path
):
  changes, message = CHANGES[name]
  arrays = {**golden("weights_model.npz"), **changes}
  arrays = {n: array for n, array in arrays.items() if array is not None}
  source, out = save_sets("a.pth", model=arrays), tmp_path / "out"
  line = fails("convert", source, "--out", out, "--num_heads", "4")
  assert message in line
  assert not out.exists()


def test_what_cannot_be_converted_is_one_sentence(
  fails, model_file, codec_file, tmp_path
):
  out = ["--out", tmp_path / "out"]
  page = tmp_path / "page.pth"
  page.write_text("<!DOCTYPE html><html>no</html>")
  cut = tmp_path / "cut.pth"
  cut.write_bytes(model_file.read_bytes()[:-1000])
  picture = tmp_path / "picture.pth"
  picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
  assert "web page" in fails("convert", page, *out)
  assert "cut" in fails("convert", cut, *out)
  assert str(picture) in fails("convert", picture, *out)
  assert "--num_heads" in fails("convert", model_file, *out)
  assert "does not exist" in fails("convert", tmp_path / "absent.pth", *out)
  assert "mar-lrge does not exist" in fails("convert", "mar-lrge", *out)
  assert "--out is missing" in fails("convert", model_file)
  assert "only one set" in fails(
    "convert", codec_file, "--weights", "ema", *out
  )
  (tmp_path / "there").mkdir()
  line = fails("convert", model_file, "--out", tmp_path / "there")
  assert "already exists" in line
  heads = ["--num_heads", "4"]
  line = fails("convert", model_file, *out, *heads, "--autoencoder", model_file)
  assert "is a model; name an autoencoder" in line
  line = fails("convert", codec_file, *out, "--autoencoder", codec_file)
  assert "needs no autoencoder" in line
  line = fails("convert", model_file, *out, *heads, "--class_names", "absent")
  assert "--class_names is absent" in line
  assert not (tmp_path / "out").exists()


class Planted:
  """Runs code when it is unpickled by a careless reader."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return Path.touch, (Path(self.path),)


def test_a_pickle_that_would_run_code_is_refused(fails, tmp_path):
  torch = pytest.importorskip("torch")
  planted = tmp_path / "executed"
  source = tmp_path / "evil.pth"
  torch.save({"model": {"a": torch.zeros(1)}, "x": Planted(planted)}, source)
  line = fails("convert", source, "--out", tmp_path / "out")
  assert str(source) in line
  assert not planted.exists()
