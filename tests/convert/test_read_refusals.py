"""Files that are not read: each says why, and nothing in them is run."""

import argparse
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from marjax.convert import read as reading
from marjax.convert.read import read, sha256


@pytest.fixture
def published(torch):
  """The contents of a file in the published layout."""
  return {"model": {"a": torch.zeros(2)}, "model_ema": {"a": torch.ones(2)}}


class Planted:
  """Unpickled by a careless reader, this makes a file."""

  def __init__(self, path, call=os.mkdir):
    self.path, self.call = str(path), call

  def __reduce__(self):
    return self.call, (self.path,)


class Impostor(argparse.Namespace):
  """A Namespace by inheritance."""

  def __setstate__(self, state):
    os.mkdir(state["path"])


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ({}, "holds no tensors"),
    ({"model": {}, "model_ema": {}}, "holds no tensors in its ema weights"),
    ([1, 2], "holds one list; expected a dict"),
    (3, "holds one int; expected a dict"),
    ({"epoch": 3}, "type int under 'epoch'"),
    ({"weights": {"a": 1.0}}, "type dict under 'weights'"),
    ({"model": {"deep": {"a": 1.0}}}, "type dict under 'deep'"),
    ({"args": argparse.Namespace(a=1)}, "under 'args'"),
    (argparse.Namespace(a=1), "expected a dict"),
  ],
)
def test_what_is_no_state_dict_is_explained(save, content, message):
  with pytest.raises(ValueError, match=message) as caught:
    read(save(content))
  assert "file.pth" in str(caught.value)


def test_what_is_no_plain_tensor_is_explained(save, torch):
  for tensor in (
    torch.eye(3).to_sparse(),
    torch.zeros(3, dtype=torch.complex64),
    torch.zeros(3, device="meta"),
  ):
    with pytest.raises(ValueError, match="under 'odd'; expected one tensor of"):
      read(save({"odd": tensor}))
  with pytest.raises(ValueError, match="under 7"):
    read(save({7: torch.zeros(3)}))


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("call", [os.mkdir, pathlib.Path, eval, exec])
def test_code_is_refused_and_not_run(save, published, tmp_path, is_zip, call):
  planted = tmp_path / "planted"
  argument = f"__import__('os').mkdir({str(planted)!r})"
  argument = argument if call in (eval, exec) else planted
  path = save(published | {"epoch": Planted(argument, call)}, is_zip)
  with pytest.raises(ValueError, match="refused and nothing of it was run"):
    read(path)
  assert not planted.exists()


def test_the_planted_code_would_run(save, published, tmp_path, torch):
  path = save(published | {"epoch": Planted(tmp_path / "planted")})
  torch.load(path, weights_only=False)
  assert (tmp_path / "planted").exists()


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_pretends_to_be_a_namespace_is_refused(
  save, published, tmp_path, is_zip
):
  impostor = Impostor(path=str(tmp_path / "planted"))
  with pytest.raises(ValueError, match="Impostor, which could run code"):
    read(save(published | {"args": impostor}, is_zip))
  hiding = argparse.Namespace(inner=Planted(tmp_path / "planted"))
  with pytest.raises(ValueError, match="refused"):
    read(save(published | {"args": hiding}, is_zip))
  assert not (tmp_path / "planted").exists()


def write_zip(path, program: bytes):
  """A PyTorch file with this pickle, and one storage of 4 floats."""
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("archive/data.pkl", program)
    file.writestr("archive/version", "3\n")
    file.writestr("archive/data/0", bytes(16))


NAMESPACE = b"\x80\x02cargparse\nNamespace\n"


@pytest.mark.parametrize(
  ("program", "is_refused"),
  [
    (b")\x81}X\x01\x00\x00\x00aK\x01sb.", False),  # what pickle writes
    (b")\x81}X\x09\x00\x00\x00__class__K\x01sb.", False),
    (b")\x81N}X\x09\x00\x00\x00__class__K\x01s\x86b.", False),  # by setattr
    (b")\x81N}X\x01\x00\x00\x00aK\x01s\x86b.", False),
    (b"K\x01\x85R.", True),  # called with an argument
    (b"K\x01\x85\x81.", True),  # made with an argument
    (b"}X\x01\x00\x00\x00aK\x01sb.", True),  # state for the class itself
    (b")\x81K\x01a.", True),  # taken for a list
    (b")\x81K\x01K\x02s.", True),  # taken for a dict
  ],
)
def test_a_namespace_holds_nothing(torch, tmp_path, program, is_refused):
  path = tmp_path / "file.pth"
  write_zip(path, NAMESPACE + program)
  before = [*vars(reading._Forgotten)]
  message = "refused|damaged" if is_refused else "holds one _Forgotten"
  with pytest.raises(ValueError, match=message):
    read(path)
  assert [*vars(reading._Forgotten)] == before
  assert vars(argparse.Namespace()) == {}


def test_the_allowance_ends_with_the_reading(save, published, torch):
  read(save(published | {"args": argparse.Namespace(lr=1.0)}))
  allowed = torch.serialization.get_safe_globals()
  assert (reading._Forgotten, "argparse.Namespace") not in allowed
  assert argparse.Namespace not in allowed
  forgotten = reading._Forgotten()
  with pytest.raises(AttributeError):
    forgotten.lr = 1.0


def test_torchs_advice_to_load_unsafely_is_not_passed_on(save, tmp_path):
  path = save({"epoch": Planted(tmp_path / "planted")})
  with pytest.raises(ValueError, match="refused") as caught:
    read(path)
  assert "weights_only" not in str(caught.value)
  assert caught.value.__suppress_context__
  assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("is_zip", [True, False])
def test_cut_files_are_explained(save, torch, is_zip):
  path = save({"a": torch.zeros(1000), "b": torch.ones(1000)}, is_zip)
  content = path.read_bytes()
  for size in (100, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"damaged or cut short|refused"):
      read(path)


def test_storages_that_are_not_there_are_explained(save, torch, tmp_path):
  source, path = save({"a": torch.zeros(4)}), tmp_path / "lying.pth"
  with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
    for name in old.namelist():
      # Four numbers, says the original; 65535, this one.
      new.writestr(name, old.read(name).replace(b"K\x04", b"M\xff\xff"))
  with pytest.raises(ValueError, match="damaged or cut short"):
    read(path)


def test_other_zips_are_explained(torch, tmp_path):
  path = tmp_path / "file.pth"
  with path.open("wb") as file:
    np.savez(file, a=np.zeros(3))
  with pytest.raises(ValueError, match="a zip archive of something else"):
    read(path)
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("archive/data.pkl", "")
    file.writestr("archive/constants.pkl", "")
  with pytest.raises(ValueError, match="a TorchScript program"):
    read(path)


# safetensors files; torch is not needed.


def test_cut_safetensors_are_explained(tmp_path):
  path = tmp_path / "file.safetensors"
  save_file({"a": np.ones(9), "b": np.ones(9)}, path)
  content = path.read_bytes()
  for size in (20, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:size])
    with pytest.raises(ValueError, match="damaged or cut short"):
      read(path)
  path.write_bytes(content + b"more")
  with pytest.raises(ValueError, match="damaged or cut short"):
    read(path)


def write_safetensors(path, header: str, data: bytes = b""):
  path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)


def test_odd_safetensors_are_explained(tmp_path):
  path = tmp_path / "file.safetensors"
  entry = '{"a": {"dtype": "%s", "shape": [2], "data_offsets": [0, %d]}}'
  for kind, size in (("F8_E4M3", 2), ("C64", 16)):
    write_safetensors(path, entry % (kind, size), bytes(size))
    with pytest.raises(ValueError, match=f"has {kind} numbers under 'a'"):
      read(path)
  write_safetensors(path, entry % ("F32", 4000), bytes(8))
  with pytest.raises(ValueError, match="damaged or cut short"):
    read(path)
  write_safetensors(path, "{}")
  with pytest.raises(ValueError, match="holds no tensors"):
    read(path)


# Whatever else lies there; torch is not needed.


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "is empty"),
    (b"<!DOCTYPE html><html>", "is a web page.*dl=1"),
    (b"\xef\xbb\xbf\n <HTML lang='en'>", "is a web page"),
    (pickle.dumps({"a": 1}), "is a plain pickle.*not opened"),
    (pickle.dumps({"a": 1}, protocol=2), "is a plain pickle"),
    (b"\x89PNG\r\n\x1a\n" + bytes(99), r"starts with b'\\x89PNG"),
    (b"just a text", "starts with b'just a t'"),
    (b'{"a": "b{"}', "starts with"),
    (b"PK", "starts with b'PK'"),
  ],
)
def test_other_files_are_explained(tmp_path, content, message):
  path = tmp_path / "file.pth"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as caught:
    read(path)
  assert str(path) in str(caught.value)
  assert "expected a PyTorch or safetensors weight file" in str(caught.value)


def test_what_cannot_be_opened_is_explained(tmp_path):
  with pytest.raises(
    FileNotFoundError, match=r"absent cannot be read .no such"
  ):
    read(tmp_path / "absent")
  with pytest.raises(
    IsADirectoryError, match=r"cannot be read .is a directory"
  ):
    read(tmp_path)
  with pytest.raises(FileNotFoundError, match="absent cannot be read"):
    sha256(tmp_path / "absent")
