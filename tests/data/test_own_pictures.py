"""A place with pictures tells splits, classes, sizes; each fault is said."""

import dataclasses
import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from marjax.cli import main
from marjax.data import contents, sources, survey
from marjax.data.batches import Batches


def png(value: int, side: int = 16, mode: str = "L") -> bytes:
  ramp = np.add.outer(np.arange(side), np.arange(side)) + value
  picture = Image.fromarray(ramp.astype(np.uint8)).convert(mode)
  file = io.BytesIO()
  picture.save(file, "PNG")
  return file.getvalue()


PICTURES = {
  f"{name}/{i}.png": png(9 * i)
  for name, count in (("sea", 4), ("golden hour", 3))
  for i in range(count)
}


def spread(root, files):
  for name, content in files.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
  return root


def zipped(path, files):
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return path


def tarred(path, files):
  with tarfile.open(path, "w") as archive:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return path


def parquet(path, files, note=True):
  import pyarrow as pa
  import pyarrow.parquet as pq

  names = sorted({name.split("/")[0] for name in files})
  rows = [{"bytes": content, "path": name} for name, content in files.items()]
  labels = [names.index(name.split("/")[0]) for name in files]
  table = pa.table({"image": rows, "label": labels})
  feature = {"_type": "ClassLabel", "names": names}
  if note:
    info = {"info": {"features": {"label": feature}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
  (path / "data").mkdir(parents=True)
  half = len(rows) // 2
  for i, part in enumerate((table[:half], table[half:])):
    name = f"train-{i:05}-of-00002.parquet"
    pq.write_table(part, path / "data" / name, row_group_size=2)
  return path


MAKERS = {
  "folder": lambda path: spread(path / "p", PICTURES),
  "zip": lambda path: zipped(path / "p.zip", PICTURES),
  "tar": lambda path: tarred(path / "p.tar", PICTURES),
  "zip of a folder": lambda path: zipped(
    path / "p.zip", {f"p/{name}": x for name, x in PICTURES.items()}
  ),
  "parquet": lambda path: parquet(path / "p", PICTURES),
}


def complete(place, **asked):
  return survey.complete({"data_dir": str(place)} | asked)[0]


def refusal(place, **asked) -> str:
  with pytest.raises((ValueError, OSError)) as error:
    complete(place, **asked)
  text = str(error.value)
  assert text.endswith(".")
  assert "expected" in text
  return text


@pytest.mark.parametrize("kind", MAKERS)
def test_every_place_has_the_same_pictures(tmp_path, kind):
  config = complete(MAKERS[kind](tmp_path))
  assert (config.num_classes, config.channels, config.image_size) == (2, 1, 16)
  source = sources.open_source(config, config.train_split)
  assert source.class_names == ("golden hour", "sea")
  pixels = {
    (source.class_names[x["label"]], x["image"].tobytes())
    for x in (source[i] for i in range(len(source)))
  }
  assert pixels == {
    (name.split("/")[0], np.asarray(Image.open(io.BytesIO(x))).tobytes())
    for name, x in PICTURES.items()
  }
  counted = contents.of_source(source)
  assert [part.num_images for part in counted.classes] == [3, 4]


@pytest.mark.parametrize(
  ("names", "expected"),
  [
    (["train/a/1", "test/a/1"], ("train", "test", 1)),
    (["Train/a/1", "Train/b/1", "val/a/1"], ("Train", "val", 2)),
    (["a/1", "b/1"], (".", "test", 2)),
    (["1", "2"], (".", "test", 0)),
    (["train/1", "ship/1"], (".", "test", 2)),
    (["train/1", "test/1"], ("train", "test", 0)),
  ],
)
def test_splits_and_classes_of_a_layout(tmp_path, names, expected):
  spread(tmp_path, {f"{name}.png": png(1) for name in names})
  config = complete(tmp_path)
  found = (config.train_split, config.test_split, config.num_classes)
  assert found == expected
  assert len(sources.open_source(config, config.train_split)) >= 1


def test_what_is_asked_for_is_not_derived(tmp_path):
  spread(tmp_path, PICTURES)
  config, found = survey.complete(
    {"data_dir": str(tmp_path), "channels": 3, "image_size": 8}
  )
  assert (config.channels, config.image_size) == (3, 8)
  assert not {"channels", "image_size"} & found.keys()


def test_a_prepared_data_set_is_read_as_it_is(tfds_dir):
  config = complete(tfds_dir / "tiny" / "2.0.0")
  sizes = config.num_classes, config.channels, config.image_size
  assert sizes == (4, 3, 8)
  assert (config.train_split, config.test_split) == ("train", "train")
  assert len(Batches(config, "train", 4)[0]["label"]) == 4
  assert not survey.has_split(config, config.test_split)


def test_one_coloured_picture_makes_three_channels(tmp_path):
  spread(tmp_path, {"1.png": png(1, mode="L"), "2.png": png(2, mode="1")})
  assert complete(tmp_path).channels == 1
  picture = Image.new("RGB", (16, 16), "red")
  picture.save(tmp_path / "3.png")
  assert complete(tmp_path).channels == 3


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_share_is_held_out_and_stays(tmp_path, kind):
  files = {f"a/{i}.png": png(i % 99) for i in range(200)}
  make = {"folder": spread, "parquet": parquet}[kind]
  config = complete(make(tmp_path / "p", files))
  assert config.test_share == 0.1
  train, test = (
    sources.open_source(config, split)
    for split in (config.train_split, config.test_split)
  )
  assert len(train) + len(test) == 200
  assert 8 <= len(test) <= 35
  assert train.other_splits()["test"] == len(test)
  if kind == "folder":
    assert not {*train.names} & {*test.names}
    before = {*test.names}
    spread(tmp_path / "p", {f"a/new{i}.png": png(i) for i in range(50)})
    assert before <= {*sources.open_source(config, "test").names}


@pytest.mark.parametrize("kind", MAKERS)
def test_where_none_was_held_out_that_is_what_is_said(tmp_path, kind):
  config = complete(MAKERS[kind](tmp_path))
  why = r"no split 'test', and training held none .*50 or more.*--against"
  with pytest.raises(FileNotFoundError, match=why):
    sources.open_source(config, config.test_split)


def test_a_class_keeps_a_picture_to_train_on(tmp_path):
  spread(tmp_path, {f"c{i}/1.png": png(i) for i in range(60)})
  config = complete(tmp_path)
  assert len(sources.open_source(config, ".").class_names) == 60
  assert len(sources.open_source(config, ".")) == 60


def test_mean_and_deviation_are_those_of_the_pixels(tmp_path):
  spread(tmp_path, PICTURES)
  pixels = np.stack(
    [np.asarray(Image.open(io.BytesIO(x))) for x in PICTURES.values()]
  )
  mean, deviation = survey.statistics(complete(tmp_path))
  scaled = pixels / 127.5 - 1
  assert mean == pytest.approx(scaled.mean(), abs=1e-3)
  assert deviation == pytest.approx(scaled.std(), abs=1e-3)


def test_refusals(tmp_path):
  assert "is empty" in refusal("")
  assert "there is nothing" in refusal(tmp_path / "gone")
  (tmp_path / "empty").mkdir()
  assert "holds no images" in refusal(tmp_path / "empty")
  small = spread(tmp_path / "small", {"a/1.png": png(1), "b/2.png": png(2)})
  said = refusal(small, image_size=64)
  assert "smaller than the 64 pixels" in said
  assert "--config.image_size=16 " in said
  (tmp_path / "x.rar").write_bytes(b"Rar!")
  assert "unknown kind" in refusal(tmp_path / "x.rar")
  (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b")
  assert "compressed as a whole" in refusal(tmp_path / "x.tar.gz")
  spread(tmp_path / "broken", {"a/1.png": b"no picture"})
  with pytest.raises(ValueError, match="none of 1 pictures can be read"):
    complete(tmp_path / "broken")
  flat = spread(tmp_path / "flat", {"1.png": png(0, 1)})
  with pytest.raises(ValueError, match="has the same value"):
    survey.statistics(complete(flat))


@pytest.mark.parametrize("make", [zipped, tarred, parquet])
def test_a_damaged_archive_is_one_sentence(tmp_path, make):
  ending = {zipped: ".zip", tarred: ".tar", parquet: ""}[make]
  path = make(tmp_path / f"p{ending}", PICTURES)
  file = path if ending else path / "data" / "train-00000-of-00002.parquet"
  file.write_bytes(file.read_bytes()[:100])
  said = refusal(path)
  assert "cannot be read as" in said


def test_a_damaged_member_is_named(tmp_path):
  path = zipped(tmp_path / "p.zip", PICTURES)
  content = bytearray(path.read_bytes())
  content[60:90] = bytes(30)
  path.write_bytes(content)
  source = sources.open_source(complete(path), ".")
  with pytest.raises(ValueError, match=r"p\.zip/sea/0\.png cannot be read"):
    source[source.names.index("sea/0.png")]


def test_members_outside_of_an_archive_are_passed_over(tmp_path):
  more = {"../x/1.png": png(1), "/y/1.png": png(1)}
  source = sources.open_source(
    complete(tarred(tmp_path / "p.tar", PICTURES | more)), "."
  )
  assert source.class_names == ("golden hour", "sea")


def run_with(root, workdir, is_new, **changes):
  config = dataclasses.replace(complete(root, skip_unreadable=True), **changes)
  names = contents.chosen(workdir, config, is_new)
  batches = Batches(config, config.train_split, 1, names=names)
  contents.keep(batches, workdir, config.accept, is_new)
  return batches


def test_a_run_goes_on_with_the_pictures_it_began_with(tmp_path, caplog):
  caplog.set_level("INFO", "marjax")
  root = spread(tmp_path / "p", PICTURES)
  before = run_with(root, tmp_path, is_new=True)
  spread(root, {"sea/10.png": png(77), "a new class/1.png": png(78)})
  after = run_with(root, tmp_path, is_new=False, num_classes=2)
  assert "2 pictures came since" in caplog.text
  assert "a new class/1.png, sea/10.png" in caplog.text
  assert after.source.class_names == before.source.class_names
  for step in range(10):
    for key, value in before[step].items():
      np.testing.assert_array_equal(after[step][key], value)
  for name in ("sea/10.png", "a new class/1.png", "sea/1.png"):
    (root / name).unlink()
  (root / "a new class").rmdir()
  with pytest.raises(ValueError, match="sea had 4 images and has 3"):
    run_with(root, tmp_path, is_new=False, num_classes=2)
  config = complete(root)
  root.rename(tmp_path / "elsewhere")
  with pytest.raises(FileNotFoundError, match="p, and there is nothing; expec"):
    contents.chosen(tmp_path, config, is_new=False)


def test_a_new_class_does_not_disturb_a_run_with_a_share(tmp_path):
  files = {f"{name}/{i}.png": png(i) for name in "ab" for i in range(30)}
  root = spread(tmp_path / "p", files)
  before = run_with(root, tmp_path, is_new=True)
  assert before.source.other_splits() == {"test": 60 - before.num_examples}
  spread(root, {"aa/1.png": png(78)})
  after = run_with(root, tmp_path, is_new=False, num_classes=2)
  assert after.source.added == ["aa/1.png"]
  assert after.source.names == before.source.names


def test_what_is_no_picture_is_skipped_by_name_and_reason(tmp_path, caplog):
  caplog.set_level("INFO", "marjax")
  files = PICTURES | {"sea/bad.png": b"nothing", "sea/notes.txt": b"x"}
  batches = run_with(spread(tmp_path / "p", files), tmp_path, is_new=True)
  assert batches.num_examples == len(PICTURES)
  assert "1 picture skipped: " in caplog.text
  assert "sea/bad.png cannot be read as an image" in caplog.text
  assert "1 .txt file (sea/notes.txt)" in caplog.text
  spread(tmp_path / "p", {"lost/1.png": b"nothing"})
  with pytest.raises(ValueError, match="no picture of lost can be read"):
    run_with(tmp_path / "p", tmp_path, is_new=True)


def test_the_verb_prints_and_draws(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  spread(tmp_path / "photos", PICTURES)
  assert main.main(["data", "photos", "--image_size", "8"]) == 0
  said = capsys.readouterr().out
  assert "0 golden hour (3), 1 sea (4)" in said
  assert "sizes: 7 16×16" in said
  assert "training sees 8×8 pixels of 1; mean" in said
  with Image.open("pictures.png") as page:
    assert np.asarray(page).std() > 0


def test_one_may_look_again_and_what_is_wrong_comes_first(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  spread(tmp_path / "photos", PICTURES)
  for name in ("pictures.png", "pictures-2.png", "pictures-3.png"):
    assert main.main(["data", "photos"]) == 0
    assert f"a page of them: {name}" in capsys.readouterr().out
  before = {path: path.read_bytes() for path in tmp_path.glob("*.png")}

  def refusal(*argv):
    assert main.main(["data", *argv]) == 2
    return capsys.readouterr().err

  named = ["--out", "pictures.png"]
  assert "pictures.png already exists" in refusal("photos", *named)
  assert "there is nothing" in refusal("gone", *named)
  assert "image_size is -4" in refusal("photos", "--image_size=-4", *named)
  assert before == {path: path.read_bytes() for path in tmp_path.glob("*.png")}
  assert main.main(["data", "photos", "--image_size=8", "--overwrite"]) == 0
  assert (tmp_path / "pictures.png").read_bytes() not in before.values()
