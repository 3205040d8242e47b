"""Files that grow while a run goes on, and say so when they cannot.

1. On this machine what is written is appended at once, in one write: a kill
   cuts at most the last one.
2. In a bucket nothing can be appended: `flush` writes the object again, whole.
"""

import contextlib
from collections.abc import Iterator

from marjax import outputs
from marjax.outputs import AnyPath


class Appended:
  """A file that only grows.

  Every method raises OSError, one sentence, where the file cannot be written.
  """

  def __init__(self, path: AnyPath, content: bytes = b""):
    """`content` is what an existing file has, if it is in a bucket."""
    self.path, self.size = path, len(content)
    self._content = self._file = None
    with self._one_sentence():
      if outputs.is_remote(path):
        self._content, self._is_new = bytearray(content), True
      else:
        # Unbuffered, so that nothing is left for a close to fail on.
        self._file = open(path, "ab", buffering=0)

  def write(self, content: bytes) -> None:
    """Appends; in a bucket, with the next `flush`."""
    self.size += len(content)
    if self._file is None:
      self._content += content
      self._is_new = True
      return
    with self._one_sentence():
      while content:  # a disk that fills up takes a part
        content = content[self._file.write(content) :]

  def flush(self) -> None:
    """Leaves nothing in this process's memory."""
    if self._file is None and self._is_new:
      with self._one_sentence():
        self.path.write_bytes(bytes(self._content))
      self._is_new = False

  def close(self) -> None:
    """Flushes and closes."""
    self.flush()
    if self._file:
      self._file.close()

  @contextlib.contextmanager
  def _one_sentence(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      raise OSError(
        f"{self.path} cannot be written ({outputs.reason(error)}); the"
        " checkpoints are intact: make room, or see to it that you can write"
        " there, and run the same command again."
      ) from error
