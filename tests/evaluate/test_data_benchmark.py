"""The benchmark of the input pipeline measures what its columns say."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import data
from marjax.latents.kl import KLConfig

SMALL = KLConfig(image_size=32, multipliers=(1, 2), latent_channels=4)


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(data, "KL16", SMALL)
  monkeypatch.setattr(data, "SHARD_SIZE", 4)


def test_imagenet_latents_are_what_is_timed():
  assert data.KL16.latent_shape == (16, 16, 16)
  for file in data.files():
    with Image.open(io.BytesIO(file)) as picture:
      assert (picture.format, picture.size) == ("JPEG", (500, 375))
      assert picture.mode == "RGB"


def test_the_cache_that_is_timed_is_whole(quick, tmp_path):
  data.write(tmp_path, 10)
  latents = data._opened(tmp_path)
  assert len(latents.index.shards) == 3
  coins = np.arange(10) % 2 == 0
  record, _, ids = latents.gather(np.arange(10), coins)
  moments = record["moments"]
  assert moments.dtype == np.float16
  assert moments.shape == (10, 16, 16, 8)
  assert ids.tolist() == list(range(10))


def test_rows_are_appended(quick, tmp_path, capsys):
  out = tmp_path / "new" / "data.jsonl"
  flags = ["--num_images", "8", "--batch_size", "4", "--repeats", "2"]
  for tasks in ("crop,write", "read"):
    assert data.main([*flags, "--tasks", tasks, "--out", str(out)]) == 0
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  found = [(row["task"], row["threads"]) for row in rows]
  assert found == [("crop", 1), ("write", 1), ("read", 1), ("read", 2)]
  for row in rows:
    assert row["seconds_fastest"] <= row["seconds"] <= row["seconds_slowest"]
    assert row["images_per_second"] == pytest.approx(1 / row["seconds"])
    assert row["repeats"] == 2
    assert {"pillow", "array_record"} <= row["versions"].keys()
  assert len(capsys.readouterr().out.splitlines()) == 4


def test_wrong_flags_are_one_sentence(tmp_path, capsys):
  out = ["--out", str(tmp_path / "data.jsonl")]
  assert data.main([*out, "--tasks", "sleep"]) == 2
  assert data.main([*out, "--repeats", "0"]) == 2
  said = capsys.readouterr().err
  assert "no task 'sleep'; expected some of crop, write, read." in said
  assert "--repeats: it is '0'; expected a whole number, 1" in said
  assert not (tmp_path / "data.jsonl").exists()
