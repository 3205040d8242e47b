"""What is malicious or odd in a release is told in one sentence, at once."""

import dataclasses
import json
import os
import shutil

import flips
import jax
import numpy as np
import pytest
import small

import marjax
from marjax import schema
from marjax.convert import run
from marjax.parallel.mesh import host_mesh, make_mesh
from marjax.release import card as cards
from marjax.release import directory, exporting, files, loading, single_file
from marjax.release.card import MANIFEST, Card
from marjax.release.digest import digest


@pytest.fixture(scope="module")
def release(tmp_path_factory):
  return small.save_release(tmp_path_factory.mktemp("release") / "small")


@pytest.fixture
def copy(release, tmp_path):
  return shutil.copytree(release, tmp_path / "copy")


def load(path):
  return marjax.load(path, make_mesh(devices=jax.devices()[:1]))


def contents(path):
  """All that a release says, as numbers that can be compared."""
  loaded = loading.load(path, host_mesh())
  return loaded.card, digest(loaded.params), digest(loaded.codec_params)


def edit(folder, change):
  """Changes the manifest by a function, and takes its hash away."""
  path = folder / MANIFEST
  mapping = json.loads(path.read_text())
  del mapping[schema.HASH]
  change(mapping)
  path.write_text(json.dumps(mapping))


def test_a_flipped_bit_is_told(copy, tmp_path):
  paths = [path for path in copy.rglob("*") if path.is_file()]
  jsons = [copy / MANIFEST, copy / "autoencoder" / MANIFEST]
  one = tmp_path / "one.safetensors"
  exporting.export(copy / "autoencoder", one)
  for damaged, path, count in (
    (paths, copy, 16),
    (jsons, copy, 16),
    ([one], one, 6),
  ):
    seen = flips.outcomes(damaged, lambda path=path: contents(path), count)
    assert seen == {"told": count}


def test_a_flipped_bit_in_a_card_is_told(tmp_path):
  """In names and settings, which nothing but the hash can tell."""
  path = tmp_path / MANIFEST
  path.write_bytes(cards.with_files(small.card(), 1, {}).to_json())

  def use():
    return cards.read_manifest(path.read_bytes(), "file")

  assert flips.outcomes([path], use, num_trials=60) == {"told": 60}


def test_a_manifest_without_a_hash_is_read(copy):
  before = contents(copy)
  edit(copy, lambda mapping: None)
  assert contents(copy) == before


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"\xff\xfe{}", "is no JSON text"),
    (b"[" * 10**5, "is no JSON text"),
    (b'{"a": ' * 80 + b"1" + b"}" * 80, "nested more than 64 deep"),
    (b'{"format": ' + b"9" * 5000 + b"}", "is no JSON text"),
    (b'{"format": NaN}', "NaN is no number"),
    (b'{"a": 1, "a": 2}', "a key stands twice"),
    (b"[]", "holds no JSON mapping"),
  ],
)
def test_odd_json_is_one_sentence(copy, content, message):
  (copy / MANIFEST).write_bytes(content)
  with pytest.raises(ValueError, match=message) as caught:
    load(copy)
  assert len(str(caught.value).splitlines()) == 1


def test_a_json_file_is_measured_before_it_is_read(copy):
  with (copy / MANIFEST).open("wb") as file:
    file.truncate(10**12)  # a hole
  with pytest.raises(ValueError, match=r"has 10{12} bytes; expected a JSON"):
    load(copy)


def deepened(mapping):
  mapping["card"]["model"]["head"]["depth"] = 10**9


def widened(mapping):
  mapping["card"]["model"]["head"]["width"] = 10**9


def counted(mapping):
  mapping["num_parameters"] += 1


@pytest.mark.parametrize("change", [deepened, widened, counted])
def test_huge_or_wrong_counts_cost_nothing(copy, change):
  edit(copy, change)
  with pytest.raises(ValueError, match=r"depth is|width|of two models"):
    load(copy)


def test_layers_are_counted_before_shapes_are_worked_out():
  config = small.card().model
  head = dataclasses.replace(config.head, depth=200)
  with pytest.raises(ValueError, match=r"50 arrays, .* has 200 layers"):
    cards.check_layers(dataclasses.replace(config, head=head), 50, "file")


@pytest.mark.parametrize(
  "name", ["/etc/passwd", "../x", "a/../../x", "", ".", "a\\b", "a\x1b[31m"]
)
def test_names_never_leave_their_folder(copy, name):
  with pytest.raises(ValueError, match="expected a name inside its folder"):
    files.check_name(name, "the list")
  edit(copy, lambda m: m["files"].update({name: m["files"].popitem()[1]}))
  with pytest.raises(
    ValueError, match="expected a name inside its folder"
  ) as e:
    load(copy)
  assert str(e.value).isprintable()


@pytest.mark.parametrize("name", ["/tmp/kl16", "../../kl16", "a/../../kl16"])
def test_an_autoencoder_is_inside_or_beside(name):
  with pytest.raises(ValueError, match=r"names .*or \.\./NAME beside it"):
    small.card(autoencoder=name)
  for fine in ("../kl16", "autoencoder", "parts/kl16"):
    assert small.card(autoencoder=fine).autoencoder == fine


@pytest.mark.parametrize(
  "changes",
  [
    {"name": "a\x1b[2Jb"},
    {"licence": "MIT\r"},
    {"class_names": ("\x00", *map(str, range(9)))},
    {"presets": {"a\u2028b": marjax.Settings()}},
  ],
)
def test_control_characters_are_refused_and_not_shown(changes):
  with pytest.raises(ValueError, match="control characters") as caught:
    small.card(**changes)
  assert str(caught.value).isprintable()


def linked(path, tmp_path):
  """Puts a link to a file elsewhere in the place of `path`."""
  moved = tmp_path / "private"
  path.rename(moved)
  path.symlink_to(moved)


def test_links_are_not_followed_when_copied(release, tmp_path):
  inner = shutil.copytree(release / "autoencoder", tmp_path / "inner")
  (inner / "secret").symlink_to(tmp_path)
  (inner / "notes.txt").write_text("private")
  loading.copy(inner, tmp_path / "fine")
  assert {path.name for path in (tmp_path / "fine").iterdir()} == {
    MANIFEST,
    "weights",
  }
  weights = [path for path in inner.rglob("weights/**/*") if path.is_file()]
  linked(weights[0], tmp_path)
  for use in (
    lambda: loading.copy(inner, tmp_path / "copied"),
    lambda: directory.save(
      tmp_path / "saved", small.card(autoencoder="x"), small.params(), inner
    ),
  ):
    with pytest.raises(ValueError, match=r"is a link, which is not followed"):
      use()
  assert not (tmp_path / "saved").exists()


def test_a_linked_folder_is_not_copied(release, tmp_path):
  inner = shutil.copytree(release / "autoencoder", tmp_path / "inner")
  linked(inner / "weights", tmp_path)
  assert loading.load(inner, host_mesh()).card.model is None
  with pytest.raises(ValueError, match=r"weights is a link"):
    loading.copy(inner, tmp_path / "copied")


def test_a_file_becomes_a_folder_when_copied(release, tmp_path):
  one = tmp_path / "one.safetensors"
  exporting.export(release / "autoencoder", one)
  loading.copy(one, tmp_path / "copied")
  assert contents(tmp_path / "copied") == contents(release / "autoencoder")


@pytest.mark.parametrize("name", [MANIFEST, "weights"])
def test_pipes_do_not_keep_a_reader_waiting(copy, name):
  path = copy / name
  if path.is_dir():
    path = max(path.rglob("*"), key=lambda path: path.is_file())
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(ValueError, match=r"is a named pipe|is missing"):
    load(copy)


def test_pipes_in_place_of_weight_files(tmp_path):
  pipe = tmp_path / "pipe.safetensors"
  os.mkfifo(pipe)
  for use in (
    lambda: load(pipe),
    lambda: run.convert(pipe, tmp_path / "out"),
    lambda: files.read_json(pipe),
  ):
    with pytest.raises(ValueError, match="is a named pipe; expected"):
      use()


def spoiled(params, value):
  """The parameters with one number replaced, and its name."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(params)
  arrays = [np.array(leaf) for _, leaf in leaves]
  arrays[3].flat[-1] = value
  name = jax.tree_util.keystr(leaves[3][0], simple=True, separator="/")
  return jax.tree.unflatten(structure, arrays), name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_neither_saved_nor_loaded(
  value, tmp_path, monkeypatch
):
  params, name = spoiled(small.codec_params(), value)
  card, one = Card("KL", small.CODEC), tmp_path / "a.safetensors"
  for save in (
    lambda: directory.save(tmp_path / "a", card, params),
    lambda: single_file.write(one, card, params),
  ):
    with pytest.raises(ValueError, match=f"NaN or infinity in .*{name}; exp"):
      save()
  assert list(tmp_path.iterdir()) == []
  with monkeypatch.context() as patch:
    for module in (directory, single_file):
      patch.setattr(module, "check_finite", lambda *_: None)
    directory.save(tmp_path / "a", card, params)
    single_file.write(one, card, params)
  for path in (tmp_path / "a", one):
    with pytest.raises(ValueError, match=f"NaN or infinity in {name}; exp"):
      loading.load(path, host_mesh())


def test_tensors_of_another_type_are_refused(tmp_path):
  one, params = tmp_path / "a.safetensors", small.codec_params()
  halves = jax.tree.map(lambda array: np.asarray(array, "float16"), params)
  single_file.write(one, Card("KL", small.CODEC), halves)
  with pytest.raises(ValueError, match=r"F16 of shape .* makes it F32"):
    load(one)
