"""`marjax cache-latents`, as a command: flags, messages, kills."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from marjax.cli import main
from marjax.data import latent_cache

ROOT = pathlib.Path(__file__).parents[2]
NUM_KILLS = 10
NUM_IMAGES = 1500
SHARD_SIZE = 20
PATIENCE_SECONDS = 240


@pytest.fixture
def fails(capsys):
  """Runs the command, which must fail; returns its one line on stderr."""

  def run(*flags) -> str:
    try:
      code = main.main(["cache-latents", *map(str, flags)])
    except SystemExit as stop:
      code = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1, lines
    return lines[0]

  return run


def flags_for(folder, cache, autoencoder, *more) -> list[str]:
  flags = ["--source", "folder", "--data_dir", folder, "--out", cache]
  return [*map(str, [*flags, "--autoencoder", autoencoder, *more])]


def test_a_folder_of_images(folder, tmp_path, autoencoder, capsys):
  path = folder / "train" / "cat" / "3.png"
  path.write_bytes(b"no image")
  cache = tmp_path / "cache"
  more = ["--shard_size", "4", "--batch_size", "4", "--dtype", "float32"]
  flags = flags_for(folder, cache, autoencoder, *more)
  reports = ["--verify", "--statistics"]
  assert main.main(["cache-latents", *flags, *reports]) == 0
  said = capsys.readouterr()
  assert "11 images, plain and mirrored, in 3 shards" in said.out
  assert "train/cat/3.png: UnidentifiedImageError" in said.out
  assert "every file has its hash" in said.out
  assert "latent_scale = 1 / std = " in said.out
  assert "image/s" in said.err
  assert (cache / "statistics.json").is_file()
  index = json.loads((cache / "index.json").read_text())
  assert index["settings"]["matmul_precision"] == "highest"
  assert index["settings"]["dtype"] == "float32"
  assert main.main(["cache-latents", "--out", str(cache), *reports]) == 0
  flags = [*flags, "--num_examples", "5"]
  assert main.main(["cache-latents", *flags]) == 2
  assert "num_source = 12, and this command has 5" in capsys.readouterr().err


def test_hosts_share_the_work(folder, tmp_path, autoencoder, capsys):
  cache, size = tmp_path / "cache", ["--shard_size", "4", "--num_hosts", "2"]
  flags = flags_for(folder, cache, autoencoder, *size)
  assert main.main(["cache-latents", *flags, "--host", "0", "--verify"]) == 0
  assert "others are still missing" in capsys.readouterr().out
  assert main.main(["cache-latents", *flags, "--host", "1", "--verify"]) == 0
  assert "every file has its hash" in capsys.readouterr().out


def test_a_tfds_dataset(tfds_dir, tmp_path, autoencoder, capsys):
  flags = ["--source", "tfds", "--data_dir", tfds_dir, "--name", "tiny"]
  flags += ["--split", "train[:5]", "--autoencoder", autoencoder]
  flags += ["--out", tmp_path / "cache"]
  assert main.main(["cache-latents", *map(str, flags)]) == 0
  assert "5 images, plain and mirrored" in capsys.readouterr().out


def test_what_is_missing_is_told(fails, folder, tmp_path, autoencoder):
  cache = tmp_path / "cache"
  assert "--source is missing; expected folder or tfds" in fails("--out", cache)
  assert "expected a cache of latents" in fails("--out", cache, "--verify")
  flags = ["--out", cache, "--autoencoder", autoencoder, "--source"]
  said = fails(*flags, "tfds", "--data_dir", tmp_path)
  assert (
    "holds no prepared dataset imagenet2012; prepare it with python" in said
  )
  assert f"goes to {tmp_path}/downloads/manual first" in said
  (tmp_path / "empty" / "train").mkdir(parents=True)
  said = fails(*flags, "folder", "--data_dir", tmp_path / "empty")
  assert "holds no images; expected CLASS/*.png below it" in said
  flags = [*flags, "folder", "--data_dir", folder]
  assert "no folder" in fails(*flags, "--split", "valid")
  assert "does not exist" in fails(*flags, "--autoencoder", tmp_path / "kl.pt")
  assert "host is 2 of 2" in fails(*flags, "--host", 2, "--num_hosts", 2)
  assert "shard_size is 0" in fails(*flags, "--shard_size", 0)
  assert "max_skipped is -1" in fails(*flags, "--max_skipped", -1)
  assert "image_size is 7; expected a multiple" in fails(
    *flags, "--image_size", 7
  )
  assert not cache.exists()


@pytest.fixture
def many_images(tmp_path):
  """NUM_IMAGES images of 8×8 in three classes."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (NUM_IMAGES, 8, 8, 3), np.uint8)
  for i, image in enumerate(pixels):
    place = tmp_path / "many" / "train" / f"class{i % 3}"
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(place / f"{i:04d}.png", compress_level=1)
  return tmp_path / "many"


def start(flags, log):
  """The command in a process of its own; its output goes to `log`."""
  return subprocess.Popen(
    [sys.executable, "-m", "marjax", "cache-latents", *flags],
    cwd=ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    stdout=log,
    stderr=subprocess.STDOUT,
  )


def count_whole(cache) -> int:
  return len(list(cache.glob("latents-*.json")))


def kill(flags, cache, log, chance, is_writing) -> None:
  """Starts the command and kills it a few shards later, perhaps in one.

  It stands still while it is looked at, so that it does not run away from a
  test that is slow.
  """
  before, wanted = count_whole(cache), chance.randint(1, 6)
  deadline = time.monotonic() + PATIENCE_SECONDS
  with open(log, "w") as file:
    process = start(flags, file)
  while True:
    process.send_signal(signal.SIGSTOP)
    is_there = not is_writing or any(cache.glob(".latents-*"))
    if count_whole(cache) >= before + wanted and is_there:
      break
    assert process.poll() is None, f"ended too early: {log.read_text()}"
    assert time.monotonic() < deadline, log.read_text()
    process.send_signal(signal.SIGCONT)
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.wait()


@pytest.mark.slow
def test_ten_kills_lose_and_double_nothing(
  many_images, tmp_path, autoencoder, latents_config
):
  straight, killed = tmp_path / "straight", tmp_path / "killed"
  more = ["--shard_size", str(SHARD_SIZE), "--batch_size", "10"]
  chance, whole, left = random.Random(0), [], []
  flags = flags_for(many_images, killed, autoencoder, *more)
  for i in range(NUM_KILLS):
    kill(flags, killed, tmp_path / f"kill_{i}.log", chance, i % 2 == 0)
    whole.append(count_whole(killed))
    left += killed.glob(".latents-*")
  assert whole[-1] < NUM_IMAGES / SHARD_SIZE, "ended before the last kill"
  assert len(left) > 3, "too few kills while a shard was being written"
  assert not (killed / "index.json").exists()
  for cache, name in ((killed, "last.log"), (straight, "straight.log")):
    flags = flags_for(many_images, cache, autoencoder, *more)
    with open(tmp_path / name, "w") as file:
      code = start(flags, file).wait(PATIENCE_SECONDS)
    assert code == 0, (tmp_path / name).read_text()
  names = [sorted(p.name for p in c.iterdir()) for c in (straight, killed)]
  assert names[0] == names[1]
  for path in straight.glob("*.*"):
    assert path.read_bytes() == (killed / path.name).read_bytes(), path
  latents = latent_cache.CachedLatents(latents_config(killed))
  every = np.arange(NUM_IMAGES)
  ids = latents.gather(every, every % 2 == 0)[2]
  np.testing.assert_array_equal(ids, every)
