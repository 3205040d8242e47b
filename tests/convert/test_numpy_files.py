"""Files of arrays are read, and nothing in them is run."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from sentences import refuses

from marjax.convert import numpy_files
from marjax.convert.numpy_files import read_npz, read_pickle

TREE = {
  "conv1": [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(3)],
  "fire/2": {"kernel": np.ones((2, 2), np.int8, order="F"), "bias": None},
}


def written(path, content, protocol=3) -> Path:
  path.write_bytes(pickle.dumps(content, protocol=protocol))
  return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_have_joined_names(tmp_path, protocol):
  arrays = read_pickle(written(tmp_path / "a", TREE, protocol))
  assert [*arrays] == ["conv1.0", "conv1.1", "fire/2.kernel"]
  assert np.array_equal(arrays["conv1.0"], TREE["conv1"][0])
  assert arrays["fire/2.kernel"].dtype == np.int8


def test_an_old_name_of_numpy_is_known(tmp_path):
  new = pickle.dumps(TREE, protocol=3)
  old = new.replace(b"numpy._core.", b"numpy.core.")
  assert old != new
  (tmp_path / "a").write_bytes(old)
  assert len(read_pickle(tmp_path / "a")) == 3


class Planted:
  """Runs code when it is unpickled by a careless reader."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_program_is_refused_and_not_run(tmp_path, protocol):
  trace = tmp_path / "trace"
  path = written(tmp_path / "a", {"x": Planted(trace)}, protocol)
  refuses(lambda: read_pickle(path), "asks for .*, which could run code, so it")
  assert not trace.exists()
  pickle.loads(path.read_bytes())
  assert trace.exists()


# Their own files, in which only a name is another.
@pytest.mark.parametrize(
  ("module", "name"),
  [
    ("numpy", "load"),
    ("numpy", "fromfile"),
    ("numpy.core.multiarray", "fromfile"),
    ("builtins", "eval"),
    ("os", "system"),
  ],
)
def test_other_names_are_refused(tmp_path, module, name):
  content = f"c{module}\n{name}\n(S'x'\ntR.".encode()
  (tmp_path / "a").write_bytes(b"\x80\x03" + content)
  refuses(lambda: read_pickle(tmp_path / "a"), f"asks for {module}.{name}")


def test_dotted_names_are_refused(tmp_path):
  parts = b"\x8c\x05numpy\x8c\x11ndarray.tofile.xx\x93."
  (tmp_path / "a").write_bytes(b"\x80\x04" + parts)
  refuses(lambda: read_pickle(tmp_path / "a"), "asks for numpy.ndarray.tofile")


@pytest.mark.parametrize(
  ("content", "said"),
  [
    ({"a": OrderedDict(b=np.ones(2))}, "asks for collections.OrderedDict"),
    ({"a": "text"}, "holds str under 'a'"),
    ({"a": np.array(["text"])}, "holds objects of <U4"),
    ({"a": np.ones(2, complex)}, "holds objects of complex128"),
    ({"a\x1b": np.ones(2)}, "has the key"),
    ({}, "holds no arrays"),
    ([[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]], "nests more than 16 deep"),
  ],
)
def test_what_is_no_array_is_refused(tmp_path, content, said):
  path = written(tmp_path / "a", content)
  refuses(lambda: read_pickle(path), said)


def test_damaged_files_are_one_sentence(tmp_path):
  path = written(tmp_path / "a", TREE)
  path.write_bytes(path.read_bytes()[:-40])
  refuses(lambda: read_pickle(path), "is damaged, or holds more than arrays")
  path.write_text("<html><body>no</body></html>")
  refuses(lambda: read_pickle(path), "is a web page")
  np.savez(tmp_path / "b.npz", a=np.ones(3))
  content = bytearray((tmp_path / "b.npz").read_bytes())
  content[content.index(b"\xf0?")] ^= 1
  (tmp_path / "c").write_bytes(content)
  refuses(lambda: read_npz(tmp_path / "c"), "is damaged")
  objects = np.array([{}], object)
  np.savez(tmp_path / "d.npz", a=objects)
  refuses(lambda: read_npz(tmp_path / "d.npz"), "is damaged, or holds more")
  assert read_npz(tmp_path / "b.npz")["a"].tolist() == [1, 1, 1]


def test_bytes_of_old_pickles_are_latin1_only():
  array = np.arange(3.0)
  old = pickle.dumps({"mu": array}, protocol=2)
  assert b"_codecs" in old
  read = numpy_files.unpickled(old, "old")
  np.testing.assert_array_equal(read["mu"], array)
  other = (
    b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R."
  )
  with pytest.raises(ValueError, match="asks for the encoding hex"):
    numpy_files.unpickled(other, "other")
