"""The scaling table shows the newest rows of accelerators, family by family."""

from experiments import markdown, rows, scaling_tables


def row_of(count=1, preset="dp", platform="gpu", **changes):
  return {
    "task": "train",
    "size": "large",
    "remat": "none",
    "dtype": "bfloat16",
    "mode": "weak",
    "preset": preset if count > 1 else "one",
    "num_devices": count,
    "batch_size": 128 * count,
    "seconds": 0.25,
    "images_per_second": 512.0 * count,
    "efficiency": 0.9876 if count > 1 else 1.0,
    "is_same_run": True,
    "exposed_seconds": 0.00123 if count > 1 else 0.0,
    "communication_seconds": 0.0212 if count > 1 else 0.0,
    "memory_bytes": 40_123_000_000,
    "device": {"platform": platform, "kind": "H"},
    "versions": {"jax": "0.11.2"},
    "date": "2026-11-29",
    **changes,
  }


def lines(*table):
  shown = markdown.table(scaling_tables.COLUMNS, scaling_tables.newest(table))
  return shown.splitlines()[2:]


def test_a_row_says_what_was_measured():
  assert lines(row_of(2)) == [
    "| training step, none | MAR-L | weak | dp | 2 | 256 | 250 | 1020 | 98.8%"
    " | 1.23 | 21.2 | 40.1 | H | 0.11.2 | 2026-11-29 |"
  ]
  unknown = {"exposed_seconds": None, "communication_seconds": None}
  earlier, alone = lines(
    row_of(2, "fsdp", is_same_run=False, **unknown),
    row_of(4, mode="strong", efficiency=None),
  )
  assert "| 98.8%* | – | – |" in earlier
  assert "| – | 1.23 |" in alone


def test_the_newest_rows_stand_family_by_family():
  table = [
    row_of(4, seconds=9.0),
    row_of(2, "fsdp"),
    row_of(mode="strong"),
    row_of(4),
    row_of(2),
    row_of(),
    row_of(2, platform="cpu", seconds=9.0),
  ]
  found = [
    (row["mode"], row["preset"], row["num_devices"], row["seconds"])
    for row in scaling_tables.newest(table)
  ]
  assert found == [
    ("weak", "one", 1, 0.25),
    ("weak", "dp", 2, 0.25),
    ("weak", "dp", 4, 0.25),
    ("weak", "fsdp", 2, 0.25),
    ("strong", "one", 1, 0.25),
  ]


def test_a_page_without_rows_says_how_to_make_them(tmp_path):
  page = "above\n<!-- scaling table -->\n<!-- end of scaling table -->\nbelow\n"
  text = scaling_tables.with_scaling(page, tmp_path)
  assert "`python -m benchmarks.scaling` on a machine with" in text
  rows.append(tmp_path / "scaling.jsonl", row_of(2))
  text = scaling_tables.with_scaling(text, tmp_path)
  assert "| MAR-L | weak | dp | 2 |" in text
  assert "No row" not in text
