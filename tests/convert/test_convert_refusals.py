"""What cannot be converted is one sentence, and nothing is left."""

import numpy as np


def test_what_cannot_be_converted_is_one_sentence(
  fails, model_file, codec_file, save_sets, golden, tmp_path
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
  stranger = {"stranger": np.zeros(2, np.float32)}
  more = save_sets("more.pth", model=golden("weights_model.npz") | stranger)
  line = fails("convert", more, *out, *heads)
  assert "stranger is matched by 0 rules" in line
  line = fails("convert", model_file, *out, *heads, "--autoencoder", model_file)
  assert "is a model; name an autoencoder" in line
  line = fails("convert", codec_file, *out, "--autoencoder", codec_file)
  assert "needs no autoencoder" in line
  line = fails("convert", model_file, *out, *heads, "--class_names", "absent")
  assert "--class_names is absent" in line
  assert not (tmp_path / "out").exists()
