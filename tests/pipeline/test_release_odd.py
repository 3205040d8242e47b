"""What is malicious or odd in a release is told in one sentence, at once."""

import dataclasses
import json
import os

import flips
import jax
import numpy as np
import pytest
import small

import marjax
from marjax.convert import run
from marjax.parallel.mesh import host_mesh
from marjax.release import card as cards
from marjax.release import directory, files, json_files, loading
from marjax.release.card import MANIFEST, Card, Manifest
from marjax.release.digest import digest


@pytest.fixture
def autoencoder(tmp_path):
  folder = tmp_path / "kl"
  directory.save(folder, Card("KL", small.CODEC), small.codec_params())
  return folder


def load(path):
  return marjax.load(path, small.one_device())


def contents(path):
  """All that a release says, as numbers that can be compared."""
  loaded = loading.load(path, host_mesh())
  return loaded.card, digest(loaded.params), digest(loaded.codec_params)


def edit(folder, change):
  """Changes the manifest by a function, and takes its hash away."""
  path = folder / MANIFEST
  mapping = json.loads(path.read_text())
  del mapping[json_files.HASH]
  change(mapping)
  path.write_text(json.dumps(mapping))


@pytest.mark.slow
def test_a_flipped_bit_is_told(copy):
  shards = copy.glob("*.safetensors")
  for damaged, count in ((shards, 22), ([copy / MANIFEST], 16)):
    seen = flips.outcomes(damaged, lambda: contents(copy), count)
    assert seen == {"told": count}


def test_a_flipped_bit_in_a_card_is_told(tmp_path):
  """In names and settings, which nothing but the hash can tell."""
  path = tmp_path / MANIFEST
  manifest = Manifest(num_parameters=1, card=small.card(), files={})
  path.write_bytes(manifest.to_json())

  def use():
    return cards.from_mapping(files.read_json(path), "file")

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


def test_links_are_not_followed_when_copied(autoencoder, tmp_path):
  (autoencoder / "secret").symlink_to(tmp_path)
  (autoencoder / "notes.txt").write_text("private")
  loading.export(autoencoder, tmp_path / "fine")
  (shard,) = autoencoder.glob("*.safetensors")
  assert {path.name for path in (tmp_path / "fine").iterdir()} == {
    MANIFEST,
    shard.name,
  }
  linked(shard, tmp_path)
  assert loading.load(autoencoder, host_mesh()).card.model is None
  choices = run.Choices(autoencoder=autoencoder)
  for use in (
    lambda: loading.export(autoencoder, tmp_path / "copied"),
    lambda: run.convert(tmp_path / "x", tmp_path / "copied", choices),
  ):
    with pytest.raises(ValueError, match=r"is a link, which is not followed"):
      use()
  assert not (tmp_path / "copied").exists()


def test_a_linked_manifest_is_not_copied(autoencoder, tmp_path):
  linked(autoencoder / MANIFEST, tmp_path)
  with pytest.raises(ValueError, match=r"release\.json is a link"):
    loading.export(autoencoder, tmp_path / "copied")


@pytest.mark.parametrize("name", [MANIFEST, "weights-00001-of-00001*"])
def test_pipes_do_not_keep_a_reader_waiting(copy, name):
  (path,) = copy.glob(name)
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
  folder, card = tmp_path / "a", Card("KL", small.CODEC)
  with pytest.raises(ValueError, match=f"NaN or infinity in .*{name}; exp"):
    directory.save(folder, card, params)
  assert list(tmp_path.iterdir()) == []
  with monkeypatch.context() as patch:
    patch.setattr(directory, "check_finite", lambda *_: None)
    directory.save(folder, card, params)
  with pytest.raises(ValueError, match=f"NaN or infinity in {name}; exp"):
    loading.load(folder, host_mesh())


def test_arrays_of_another_type_are_refused(tmp_path):
  params = small.codec_params()
  halves = jax.tree.map(lambda array: np.asarray(array, "float16"), params)
  directory.save(tmp_path / "a", Card("KL", small.CODEC), halves)
  with pytest.raises(ValueError, match=r"F16 of shape .* makes it F32"):
    load(tmp_path / "a")


def test_arrays_too_many_or_too_few_are_refused(tmp_path):
  card, params = Card("KL", small.CODEC), small.codec_params()
  total = sum(leaf.size for leaf in jax.tree.leaves(params))
  few = {**params, "decoder": dict(params["decoder"])}
  del few["decoder"]["conv_in"]
  more = {**params, "extra": np.zeros(3, np.float32)}
  for number, (tree, message) in enumerate(
    ((few, r"decoder/conv_in/bias absent"), (more, "extra F32 .* absent"))
  ):
    folder = tmp_path / str(number)
    directory.save(folder, card, tree)
    edit(folder, lambda mapping: mapping.update(num_parameters=total))
    with pytest.raises(ValueError, match=message):
      load(folder)


def test_siblings_in_a_circle_are_told(tmp_path):
  for name, other in (("a", "b"), ("b", "a")):
    card = small.card(autoencoder=f"../{other}")
    directory.save(tmp_path / name, card, small.params())
  with pytest.raises(ValueError, match="b is a model; expected the autoenc"):
    load(tmp_path / "a")
