"""Conversion as a user does it: files, names, addresses."""

import contextlib
import hashlib
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from convert import weights_server
from convert.listings import listing
from PIL import Image

import marjax
from marjax.backbone import classes
from marjax.cli import configs
from marjax.convert import fetching, run
from marjax.convert.published import Published
from marjax.parallel.mesh import host_mesh
from marjax.release import directory, loading

TESTS = Path(__file__).parents[1]
SETTINGS = marjax.Settings(
  num_ar_steps=2, num_buckets=1, head=marjax.ReverseSettings(num_steps=3)
)


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_a_model_and_its_autoencoder(command, model_file, codec_file, tmp_path):
  code, report, _ = command("convert", codec_file, "--out", tmp_path / "kl16")
  assert code == 0
  assert "latent scale 0.2325" in report
  model = tmp_path / "tiny"
  flags = ["--num_heads", "4", "--name", "tiny", "--licence", "MIT"]
  code, report, _ = command("convert", model_file, "--out", model, *flags)
  assert code == 0
  assert "288,544 in 92 arrays" in report
  assert "ema weights" in report
  digest = hashlib.sha256(model_file.read_bytes()).hexdigest()
  assert digest in report
  pipe = marjax.load(model, host_mesh())
  assert pipe.card.origin.sha256 == digest
  assert (pipe.card.name, pipe.card.licence) == ("tiny", "MIT")
  out = tmp_path / "made.npz"
  few = ["--num_ar_steps", "2", "--head.num_steps", "3"]
  flags = ["--checkpoint", model, "--labels", "1,none", "--out", out, *few]
  assert command("generate", *flags)[0] == 0
  with np.load(out) as made:
    assert made["images"].shape == (2, 64, 64, 3)
  picture = tmp_path / "a.png"
  Image.fromarray(made_picture()).save(picture)
  edited = tmp_path / "edited.npz"
  flags = ["--checkpoint", model, "--image", picture, "--out", edited, *few]
  flags += ["--mask", "left", "--labels", "3", "--num_images", "2"]
  assert command("edit", *flags)[0] == 0
  with np.load(edited) as file:
    assert file["mask"][:, :, :32].all()
    assert not file["mask"][:, :, 32:].any()
    before = pipe.encode(made_picture())[0]
    np.testing.assert_array_equal(
      file["latents"][:, :, 2:], np.stack([before[:, 2:]] * 2)
    )


def made_picture() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def test_both_sets_of_weights(command, model_file, golden, tmp_path):
  for weights, file in (("raw", "weights_model"), ("ema", "weights_ema")):
    out = tmp_path / weights
    flags = ["--weights", weights, "--num_heads", "4", "--out", out]
    assert command("convert", model_file, *flags)[0] == 0
    loaded = loading.load(out, host_mesh())
    mask_token = loaded.params["backbone"]["mask_token"]
    np.testing.assert_array_equal(
      mask_token, golden(f"{file}.npz")["mask_token"]
    )
    assert loaded.card.origin.weights == weights


@pytest.mark.slow
def test_an_autoencoder_comes_along(command, model_file, codec_file, tmp_path):
  out = tmp_path / "tiny"
  flags = ["--num_heads", "4", "--autoencoder", codec_file]
  assert command("convert", model_file, "--out", out, *flags)[0] == 0
  first = marjax.load(out, host_mesh())
  assert first.card.autoencoder == "autoencoder"
  assert first.card.codec.base_width == 32
  again = tmp_path / "again"
  code, shown, _ = command("export", "--checkpoint", out, "--out", again)
  num_bytes = sum(path.stat().st_size for path in again.glob("*.safetensors"))
  assert (code, shown) == (0, f"{num_bytes:,} bytes: {again}\n")
  second = marjax.load(again, host_mesh())
  assert second.card == first.card
  assert_equal(second.params, first.params)
  assert_equal(second.codec_params, first.codec_params)


def test_safetensors_with_published_names(command, golden, tmp_path):
  from safetensors.numpy import save_file

  source, out = tmp_path / "tiny.safetensors", tmp_path / "tiny"
  save_file(golden("weights_model.npz"), source)
  flags = ["--num_heads", "4", "--out", out]
  assert command("convert", source, *flags)[0] == 0
  card = directory.read_manifest(out).card
  assert card.origin.weights == "only"
  assert card.model.backbone.num_heads == 4


@pytest.mark.slow
def test_a_work_directory_is_released(tmp_path):
  experiment = configs.load(str(TESTS / "train" / "tiny.py"))
  workdir = tmp_path / "work"
  marjax.fit(experiment, str(workdir))
  marjax.fit(experiment, str(workdir))
  report = run.convert(workdir, tmp_path / "released")
  assert report.card.data == experiment.data
  assert report.card.step == experiment.training.num_steps
  ours = marjax.load(tmp_path / "released", host_mesh())
  theirs = marjax.load(workdir, host_mesh())
  assert ours.card == theirs.card
  assert_equal(ours.params, theirs.params)
  with pytest.raises(ValueError, match="is a released checkpoint already"):
    run.convert(tmp_path / "released", tmp_path / "again")
  loading.export(workdir, tmp_path / "exported")
  exported = marjax.load(tmp_path / "exported", host_mesh())
  assert exported.card == theirs.card
  assert_equal(exported.params, theirs.params)


def shrunk(shapes) -> dict[str, tuple[int, ...]]:
  """The listing of a model of published width: few tokens, one block each."""
  small_ones = {}
  for name, shape in shapes.items():
    if re.search(r"blocks\.[1-9]", name):
      continue
    if "pos_embed" in name:
      shape = (1, shape[1] - 240, shape[2])
    if name == "class_emb.weight":
      shape = (10, shape[1])
    small_ones[name] = shape
  return small_ones


@pytest.mark.slow
def test_a_name_is_fetched_and_converted_once(
  save_sets, codec_file, tmp_path, monkeypatch, capsys
):
  rng = np.random.default_rng(0)
  shapes = shrunk(listing("base"))
  arrays = {
    name: np.float32(0.001 * rng.standard_normal(shape))
    for name, shape in shapes.items()
  }
  files = {"kl16": codec_file, "mar-base": save_sets("base.pth", model=arrays)}
  monkeypatch.setenv("MARJAX_MODELS", str(tmp_path / "models"))
  monkeypatch.setenv("MARJAX_DOWNLOADS", str(tmp_path / "downloads"))
  with contextlib.ExitStack() as stack:
    servers = {}
    for name, file in files.items():
      server = servers[name] = stack.enter_context(weights_server.serving())
      server.answer(weights_server.Answer(content=file.read_bytes()))
      size = file.stat().st_size
      row = Published(name, server.url, size, f"{name}.pth")
      monkeypatch.setitem(fetching.PUBLISHED, name, row)
    pipe = marjax.load("mar-base", host_mesh())
    assert pipe.card.name == "mar-base"
    assert pipe.card.licence == "MIT"
    assert pipe.card.origin.url == servers["mar-base"].url
    assert pipe.card.model.backbone.num_heads == 12
    assert pipe.generate([1], settings=SETTINGS).shape == (1, 64, 64, 3)
    asked = {name: len(server.requests) for name, server in servers.items()}
    marjax.load("mar-base", host_mesh())
    shutil.copytree(
      tmp_path / "models" / "mar-base", tmp_path / "models" / "mar-base-raw"
    )
    marjax.load("mar-base-raw", host_mesh())
    assert asked == {n: len(server.requests) for n, server in servers.items()}
  assert capsys.readouterr().out.count("each placed exactly once") == 2


def test_a_missing_extra_is_found_before_anything_is_fetched(
  tmp_path, monkeypatch, fails
):
  monkeypatch.setenv("MARJAX_MODELS", str(tmp_path))
  monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: None)
  line = fails("convert", "mar-large")
  assert "torch and requests cannot be imported" in line
  assert 'pip install "marjax[convert]"' in line


def test_an_address_is_fetched(command, model_file, tmp_path, monkeypatch):
  monkeypatch.setenv("MARJAX_DOWNLOADS", str(tmp_path / "downloads"))
  flags = ["--num_heads", "4", "--out", tmp_path / "tiny"]
  with weights_server.serving() as server:
    content = model_file.read_bytes()
    server.answer(weights_server.Answer(content=content))
    assert command("convert", server.url, *flags)[0] == 0
    url = server.url.partition("?")[0]
  assert directory.read_manifest(tmp_path / "tiny").card.origin.url == url


def test_a_local_folder_of_that_name_is_not_the_published_one(
  codec_file, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("MARJAX_MODELS", str(tmp_path / "models"))
  (tmp_path / "kl16").mkdir()
  row = fetching.PUBLISHED["kl16"]
  monkeypatch.setattr(
    fetching, "_fetch_published", lambda *_: (codec_file, row.url)
  )
  fetching._provide(row)
  made = tmp_path / "models" / "kl16"
  assert directory.read_manifest(made).card.name == "kl16"

  def quicker(*_, **__):
    raise FileExistsError("made by another process")

  # Another process may make it between the look and the conversion.
  manifest = made / "release.json"
  monkeypatch.setattr(fetching.Path, "exists", lambda path: path == manifest)
  monkeypatch.setattr(fetching, "_convert_published", quicker)
  fetching._provide(row)
  with pytest.raises(FileExistsError):  # and there is nothing after all
    fetching._provide(fetching.PUBLISHED["mar-base"])


def test_a_file_of_quite_another_size_is_no_published_one(
  model_file, tmp_path, monkeypatch
):
  monkeypatch.setenv("MARJAX_DOWNLOADS", str(tmp_path))
  with weights_server.serving() as server:
    server.answer(weights_server.Answer(content=model_file.read_bytes()))
    row = Published("mar-base", server.url, 10**9, "base.pth")
    monkeypatch.setitem(fetching.PUBLISHED, "mar-base", row)
    with pytest.raises(OSError, match="mar-base has about 1,000,000,000"):
      fetching.fetched("mar-base", progress=False)


def test_names_of_classes_are_taken_from_a_file(command, model_file, tmp_path):
  names = tmp_path / "names.txt"
  names.write_text("".join(f"thing {i}\n" for i in range(10)))
  flags = ["--num_heads", "4", "--class_names", names]
  assert command("convert", model_file, "--out", tmp_path / "a", *flags)[0] == 0
  card = directory.read_manifest(tmp_path / "a").card
  assert classes.resolve(["thing 3"], card.class_names, 10) == [3]
