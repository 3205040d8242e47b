"""Speed tables show the newest rows, what they lack as a dash."""

import pytest

from experiments import markdown, precision_tables, speed_tables, tables

SETTINGS = {
  "num_ar_steps": 64,
  "num_diffusion_steps": 100,
  "guidance_scale": 2.9,
  "num_buckets": 8,
}


def row_of(platform="gpu", **changes):
  return {
    "task": "generate",
    "size": "base",
    "batch_size": 64,
    "dtype": "bfloat16",
    "settings": SETTINGS,
    "parameters": {"all": 207_900_000},
    "seconds": 4.5,
    "images_per_second": 14.22,
    "memory_bytes": 1_960_000_000,
    "compile_seconds": 75.86,
    "date": "2026-11-24",
    "device": {"platform": platform, "kind": "H", "count": 1, "cores": 2}
    | {"processor": "P"},
    **changes,
  }


SPLIT = {
  "seconds_transformer": 2.0,
  "seconds_head": 1.5,
  "seconds_rest": 0.5,
  "share_of_floor": 0.456,
  "peak_memory_bytes": 3_000_000_000,
}


def line(row):
  return markdown.table(speed_tables.columns(), [row]).splitlines()[2]


def test_old_rows_have_dashes_and_new_ones_all_columns():
  (old,) = speed_tables.newest([row_of()])
  assert line(old) == (
    "| 64 × 100 steps, guidance 2.9 | MAR-B | 64 | bfloat16 | 4500 | – | 14.2"
    " | 70.3 | – | – | 1.96 | 75.9 / – | 1 × H | 2026-11-24 |"
  )
  (new,) = speed_tables.newest([row_of(**SPLIT, cache="cold")])
  split = "| 4500 | 2000 / 1500 / 500 | 14.2 | 70.3 | 46% | – | 3 |"
  assert split in line(new)


def test_floors_are_shown_each_by_itself():
  row = {**row_of(floor_matmul_seconds=0.0123), "cold": None, "warm": None}
  assert "| 12.3 / – / – |" in line(row)
  row |= {"floor_weight_seconds": 0.5, "floor_cache_seconds": 0.25}
  assert "| 12.3 / 500 / 250 |" in line(row)


def test_other_heads_are_named():
  flow = {**SETTINGS, "num_diffusion_steps": 10, "kind": "flow"}
  row = row_of(size="guided_large", settings=flow)
  assert speed_tables.task(row) == "64 × 10 steps, flow head, guidance 2.9"
  one, other = row_of(), row_of(settings={**SETTINGS, "kind": "flow"})
  assert len(speed_tables.newest([one, other])) == 2
  row = row_of(task="train", remat="none", head="flow")
  assert speed_tables.task(row) == "training step, flow head, remat none"


def test_training_says_what_it_recomputes_and_reads():
  row = row_of(task="train", remat="none", data="latents")
  assert speed_tables.task(row) == "training step, cached latents, remat none"


def test_the_newest_row_counts_with_cold_and_warm_compiling():
  slow = row_of(seconds=9.0, cache="cold")
  # A setting that was added later, and not used.
  later = {**SETTINGS, "final_diffusion_steps": None}
  cold = row_of(**SPLIT, cache="cold", compile_seconds=40.0, settings=later)
  warm = row_of(cache="warm", compile_seconds=8.0)
  (found,) = speed_tables.newest([slow, cold, warm])
  assert found["seconds"] == 4.5
  assert found["seconds_head"] == 1.5
  assert "| 40 / 8 |" in line(found)
  (found,) = speed_tables.newest([warm])
  assert "| – / 8 |" in line(found)
  # What another day's code took to start says nothing about this one's.
  tomorrow = row_of(seconds=4.0, cache="cold", date="2026-11-25")
  (found,) = speed_tables.newest([cold, warm, tomorrow])
  assert found["seconds"] == 4.0
  assert "| – | " in line(found)
  assert "| 75.9 / – |" in line(found)


def test_other_settings_and_devices_are_other_rows():
  fewer = {**SETTINGS, "num_diffusion_steps": 25}
  table = [
    row_of(),
    row_of(settings=fewer),
    row_of(batch_size=8),
    row_of(dtype="float32"),
    row_of("cpu"),
  ]
  assert len(speed_tables.newest(table)) == 4 + 1


def test_the_readme_shows_accelerators_on_their_newest_day():
  train = row_of(task="train", size="large", parameters={"all": 478_000_000})
  table = [
    row_of("cpu"),
    row_of(),
    row_of(batch_size=8),
    train,
    row_of(settings={**SETTINGS, "num_ar_steps": 32}, date="2026-11-30"),
  ]
  found = speed_tables.on_accelerators(speed_tables.newest(table))
  assert [(row["task"], row["batch_size"], row["date"]) for row in found] == [
    ("train", 64, "2026-11-24"),
    ("generate", 8, "2026-11-24"),
    ("generate", 64, "2026-11-30"),
  ]
  # A newer day on another card leaves this one's rows.
  other = {**row_of()["device"], "kind": "another card"}
  found = speed_tables.on_accelerators(
    speed_tables.newest([row_of(), row_of(device=other, date="2026-11-30")])
  )
  assert [row["date"] for row in found] == ["2026-11-24", "2026-11-30"]


def test_a_table_goes_between_the_markers():
  start, end = "<!-- a -->\n", "<!-- end of a -->\n"

  def put(text):
    return markdown.between(text, "| a |\n", "a")

  text = f"above\n{start}old\n{end}below\n"
  once = put(text)
  assert once == f"above\n{start}\n| a |\n\n{end}below\n"
  assert put(once) == once
  for broken in ("above", start, end + start, text + start, text + end):
    with pytest.raises(ValueError, match="there is no place for the table"):
      put(broken)


def test_the_newest_rows_of_precision_count():
  def precision(start, **more):
    return {
      "subject": "digits",
      "start": start,
      "dtype": "bfloat16",
      "precision": "default",
      "device": {"kind": "H"},
      **more,
    }

  table = [precision(999, n=0), precision(950, n=1), precision(999, n=2)]
  found = precision_tables.newest(table)
  assert [(row["start"], row["n"]) for row in found] == [(999, 2), (950, 1)]


@pytest.mark.parametrize("page", tables.PAGES)
def test_pages_have_the_tables_of_the_committed_rows(page):
  text = page.read_text()
  fresh = tables.PAGES[page](text, tables.BENCHMARKS.parent)
  assert text == fresh, "run python -m experiments.tables --write"
