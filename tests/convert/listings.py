"""Names and shapes of the published state dicts."""

import json
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"


def listing(name: str) -> dict[str, tuple[int, ...]]:
  """Of base, large, huge or kl16: name → shape."""
  content = json.loads((GOLDEN / f"listing_{name}.json").read_text())
  return {key: tuple(shape) for key, shape in content.items()}
