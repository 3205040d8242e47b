"""JSON files: one way to write them, one way to read them.

The first key, `json_sha256`, is a hash of everything else, so damage is told;
a file written by hand needs none. Reading has bounds on size and nesting.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from marjax.schema import check

LARGEST_JSON = 2**28
"""Bytes of a JSON file; an index of a million shards has fewer."""

DEEPEST_JSON = 64
"""Lists and mappings inside each other."""

HASH = "json_sha256"
"""The key, in a JSON file, of the hash of everything else in it.

No other key is called so: records of files have a "sha256" of those files.
"""


def write_json(mapping: Mapping, indent: int | None = 1) -> bytes:
  """The text of a JSON file, with a hash over its content."""
  # First, for a line that is followed by others can be deleted alone.
  content = {HASH: _hash(mapping), **mapping}
  text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
  # A file's name may hold bytes that are no UTF-8: JSON writes \udc80 for them.
  return text.encode(errors="backslashreplace") + b"\n"


def read_json(content: bytes, where: str) -> dict[str, Any]:
  """The mapping that `write_json` made a text of.

  A file without a hash is taken as it is: people write some by hand.

  Args:
    content: of the file. where: its name, for messages.

  Raises:
    ValueError: no JSON mapping, too large, too deep, or changed since.
  """
  check_json_size(len(content), where)
  try:
    mapping = json.loads(
      content.decode(),
      parse_constant=_no_constant,
      object_pairs_hook=_object,
    )
    is_shallow = _is_within(mapping, DEEPEST_JSON)
  except (ValueError, RecursionError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(
      f"{where} is no JSON text ({reason}); expected a file that marjax wrote:"
      " restore it, or copy it again."
    ) from None
  check(
    isinstance(mapping, dict),
    f"{where} holds no JSON mapping; expected a file that marjax wrote: restore"
    " it, or copy it again.",
  )
  check(
    is_shallow,
    f"{where} is nested more than {DEEPEST_JSON} deep; expected a file that"
    " marjax wrote.",
  )
  written = mapping.pop(HASH, None)
  check(
    written in (None, _hash(mapping)),
    f"{where} was changed or damaged since it was written: its {HASH} is of"
    f" another content; restore it, or, if the change is meant, delete its line"
    f" {HASH}.",
  )
  return mapping


def check_json_size(num_bytes: int, where: str) -> None:
  """Refuses a JSON file that is too large to be read."""
  check(
    num_bytes <= LARGEST_JSON,
    f"{where} has {num_bytes} bytes; expected a JSON file of at most"
    f" {LARGEST_JSON}: restore it, or copy it again.",
  )


def _hash(mapping: Mapping) -> str:
  """sha256 of the JSON text with sorted keys and no spaces."""
  text = json.dumps(mapping, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  mapping = dict(pairs)
  check(len(mapping) == len(pairs), "a key stands twice in one mapping")
  return mapping


def _no_constant(name: str) -> None:
  raise ValueError(f"{name} is no number")


def _is_within(value: Any, depth: int) -> bool:
  if not isinstance(value, dict | list):
    return True
  inner = value.values() if isinstance(value, dict) else value
  return depth > 0 and all(_is_within(entry, depth - 1) for entry in inner)
