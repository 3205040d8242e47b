"""What the authors of MAR publish, and where it lies.

1. `PUBLISHED` is the table: one row for each file, by the name that commands
   take. Sizes are the published ones and not exact; no hashes are published, so
   what is made from a file should record the sha256 of what was read.
2. `find` looks a name up, and answers a slip of the pen with the near name.

Addresses end in dl=1, which asks for the file; without it that host may answer
with a web page about the file. Where the host cannot be reached there is a
mirror on the Hugging Face hub, jadechoghari/mar, also MIT: a file downloaded
from there by hand serves as well.

Reference: Li et al. 2024, "Autoregressive Image Generation without Vector
Quantization", https://github.com/LTH14/mar.
"""

import difflib
from dataclasses import dataclass

_HOST = "https://www.dropbox.com/scl/fi/"
_MIB = 2**20


@dataclass(frozen=True)
class Published:
  """One published file.

  Attributes:
    name: what commands call it, e.g. "mar-base".
    url: its address.
    approximate_bytes: its size, within about one per cent.
    file_name: what to call it on disk; the published names are not distinct.
    licence: of the weights.
  """

  name: str
  url: str
  approximate_bytes: int
  file_name: str
  licence: str = "MIT"


_MODELS = (
  ("base", "f6dpuyjb7fudzxcyhvrhk", "a6i4bo71vhfo4anp33n9ukujb", 1587),
  ("large", "pxacc5b2mrt3ifw4cah6k", "m48ovo6g7ivcbosrbdaz0ehqt", 3650),
  ("huge", "1qmfx6fpy3k7j9vcjjs3s", "4lae281yzxb406atp32vzc83o", 7191),
)
"""Size, folder, key, MiB."""

_ROWS = (
  Published(
    "kl16",
    f"{_HOST}hhmuvaiacrarfg28qxhwz/kl16.ckpt?rlkey=l44xipsezc8atcffdp4q7mwmh"
    "&dl=1",
    254 * _MIB,
    "kl16.ckpt",
  ),
  *(
    Published(
      f"mar-{size}",
      f"{_HOST}{folder}/checkpoint-last.pth?rlkey={key}&dl=1",
      num_mib * _MIB,
      f"mar-{size}.pth",
    )
    for size, folder, key, num_mib in _MODELS
  ),
)

PUBLISHED: dict[str, Published] = {row.name: row for row in _ROWS}
"""Name → published file."""


def find(name: str) -> Published:
  """The published file of that name.

  Raises:
    ValueError: there is none; a name that is near is suggested.
  """
  if name in PUBLISHED:
    return PUBLISHED[name]
  near = difflib.get_close_matches(name.lower(), PUBLISHED, n=1)
  hint = f": did you mean {near[0]}?" if near else "."
  raise ValueError(
    f"{name!r} is not a published file; expected one of"
    f" {', '.join(PUBLISHED)}{hint}"
  )
