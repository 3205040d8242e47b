"""Sets of images: which are taken, that they are read right, bad input."""

import io
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image
from sentences import refuses

from marjax.data.synthetic import SyntheticSource
from marjax.evaluate import archives, saving, set_kinds, sets
from marjax.evaluate.saved import Saving
from marjax.experiment import DataConfig

COUNT, CLASSES = 23, 3


@pytest.fixture(scope="module")
def images():
  """uint8 [23, 6, 5, 3]."""
  shape = (COUNT, 6, 5, 3)
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


LABELS = np.sort(np.arange(COUNT) % CLASSES)


def write_folder(path, images, labels=None):
  """PNG files, in class folders if there are labels."""
  for i, image in enumerate(images):
    folder = path if labels is None else path / f"class{labels[i]}"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{i:03d}.png")
  return path


def write_saved(path, images, labels, kind):
  """What a run saves."""
  count, height, width, channels = images.shape
  settings = Saving(
    kind=kind,
    num_images=count,
    height=height,
    width=width,
    channels=channels,
    shard_size=10,
  )
  with saving.Writer(path, settings) as writer:
    writer.add(np.arange(count), images, labels)
    return writer.finish()


def write(kind, path, images):
  """A set of that kind."""
  if kind == "classes":
    return write_folder(path / "set", images, LABELS)
  if kind == "flat":
    return write_folder(path / "set", images)
  if kind == "compressed":
    np.savez_compressed(path / "set.npz", arr_0=images, arr_1=LABELS)
    return path / "set.npz"
  if kind == "stored":
    np.savez(path / "set.npz", images=images)
    return path / "set.npz"
  name = "set.npz" if kind == "npz" else "set"
  return write_saved(path / name, images, LABELS, kind)


KINDS = ("classes", "flat", "compressed", "stored", "npz", "png")
KINDS += ("array_record",)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_images(kind, images, tmp_path):
  opened = sets.open_set(write(kind, tmp_path, images))
  assert len(opened) == COUNT
  assert opened.shape == (6, 5, 3)
  has_labels = kind not in ("flat", "stored")
  assert opened.num_classes == CLASSES * has_labels
  chosen = sets.choose(COUNT, 13)
  batches = list(sets.batches(opened, chosen, 5))
  assert [len(batch.images) for batch in batches] == [5, 5, 5]
  joined = sets.Batch(*map(np.concatenate, zip(*batches, strict=True)))
  np.testing.assert_array_equal(joined.is_real, np.arange(15) < 13)
  np.testing.assert_array_equal(joined.index, np.arange(15))
  np.testing.assert_array_equal(joined.images[:13], images[chosen])
  assert not joined.images[13:].any()
  expected = LABELS[chosen] if has_labels else np.full(13, -1)
  np.testing.assert_array_equal(joined.labels[:13], expected)
  np.testing.assert_array_equal(joined.labels[13:], [-1, -1])


def test_a_data_source_and_a_crop(images, tmp_path):
  write_folder(tmp_path / "test", images, LABELS)
  config = DataConfig(
    source="folder",
    image_size=4,
    num_classes=CLASSES,
    data_dir=str(tmp_path),
    train_split="test",
  )
  every = np.arange(COUNT)
  (source,) = sets.batches(sets.open_set(config), every, COUNT)
  cropped = sets.open_set(tmp_path / "test", image_size=4)
  assert cropped.crop == "centre crop to 4²"
  (folder,) = sets.batches(cropped, every, COUNT)
  assert source.images.shape == (COUNT, 4, 4, 3)
  for one, other in zip(source, folder, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
  "labels",
  [np.arange(1000) // 100, np.arange(1000) % 10],
  ids=["sorted", "in turn"],
)
def test_a_choice_has_every_class(labels):
  chosen = sets.choose(1000, 200)
  assert (np.diff(chosen) > 0).all()
  counts = np.bincount(labels[chosen], minlength=10)
  assert counts.min() >= 8
  assert counts.max() <= 34


def test_others_are_others():
  chosen = sets.choose(100, 40)
  rest = sets.others(100, chosen, 60)
  np.testing.assert_array_equal(np.union1d(chosen, rest), np.arange(100))
  assert not np.array_equal(chosen, sets.choose(100, 40, seed=1))
  refuses(lambda: sets.others(100, chosen, 61), "61 images .* of 60")


def peak(path, count):
  """Bytes that reading so many images of an archive takes at most."""
  opened = sets.open_set(path)
  tracemalloc.start()
  for _ in sets.batches(opened, np.arange(count), 16):
    pass
  most = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  return most


def test_sets_of_one_name_are_told_apart_by_pixels_and_size(images, tmp_path):
  first, other = write_folder(tmp_path / "a" / "set", images), 255 - images
  second = write_folder(tmp_path / "b" / "set", other)
  opened = [sets.open_set(path) for path in (first, first, second)]
  assert len({one.description for one in opened}) == 1
  same, again, changed = map(sets.identity, opened)
  assert same == again != changed
  crops = [sets.open_set(first, image_size=side) for side in (5, 4)]
  assert len({sets.identity(one) for one in crops}) == 2


def test_memory_is_flat_in_the_number_of_images(tmp_path):
  images = np.zeros((2000, 32, 32, 3), np.uint8)
  np.savez_compressed(tmp_path / "many.npz", images)
  few, many = (peak(tmp_path / "many.npz", count) for count in (200, 2000))
  assert many < few + 2**17
  assert many < images.nbytes / 10


class Slow(SyntheticSource):
  """A source whose images take longer or shorter, and note that they are read.

  Each shows its own index; `broken` cannot be read.
  """

  description, class_names = "slow", ("a",)
  broken = None

  def __init__(self):
    self.read = []

  def __len__(self):
    return 300

  def __getitem__(self, index):
    if index == self.broken:
      raise ValueError(f"image {index} is broken")
    time.sleep(0.001 * (7 * index % 5))
    self.read.append(index)
    return {"image": np.full((2, 2, 3), index % 256, np.uint8), "label": index}


def test_images_come_in_order_and_few_are_read_ahead():
  source = Slow()
  rows = set_kinds.Pictures(source, 2, 3).rows(np.arange(300))
  for taken, (image, label) in enumerate(rows):
    if not taken:
      time.sleep(0.5)  # time to read all of them, were it allowed
    assert (image == taken % 256).all()
    assert label == taken
    assert len(source.read) <= taken + set_kinds.AHEAD
  assert source.read != sorted(source.read) == list(range(300))


def test_an_error_of_a_thread_comes_in_its_turn_and_ends_the_others():
  source = Slow()
  source.broken = 150
  rows = set_kinds.Pictures(source, 2, 3).rows(np.arange(300))
  labels = []
  with pytest.raises(ValueError, match="image 150 is broken"):
    labels += (label for _, label in rows)
  assert labels == list(range(150 - 150 % set_kinds.PART))
  assert len(source.read) <= 150 + set_kinds.AHEAD


def test_files_of_another_size_are_named(images, tmp_path):
  write_folder(tmp_path / "set", images)
  Image.new("RGB", (7, 6)).save(tmp_path / "set" / "900.png")
  opened = sets.open_set(tmp_path / "set")
  message = r"900\.png is 7 × 6 in RGB, .*000\.png is 5 × 6 .*--image_size"
  rows = opened.rows(np.arange(COUNT + 1))
  refuses(lambda: next(rows), message)


def test_a_broken_picture_is_named(images, tmp_path):
  write_folder(tmp_path / "set", images)
  path = tmp_path / "set" / "007.png"
  path.write_bytes(path.read_bytes()[:60])
  opened = sets.open_set(tmp_path / "set")
  refuses(lambda: list(opened.rows(np.arange(COUNT))), r"007\.png cannot be")


def damaged(path, images):
  """An archive of which a byte in the middle has changed."""
  np.savez(path, images)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(bytes(content))


def lying(path, images):
  """An archive whose header promises more images."""
  content = io.BytesIO()
  header = {"descr": "|u1", "fortran_order": False, "shape": (99, 6, 5, 3)}
  np.lib.format.write_array_header_1_0(content, header)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("arr_0.npy", content.getvalue() + images.tobytes())


def test_bad_archives_are_refused(images, tmp_path):
  path = tmp_path / "set.npz"

  def read():
    return list(sets.open_set(path).rows(np.arange(COUNT)))

  damaged(path, images)
  refuses(read, r"set\.npz cannot be read \(BadZipFile: Bad CRC")
  lying(path, images)
  refuses(read, r"\[99, 6, 5, 3\], of \d+ bytes; expected \d+: the file is dam")
  path.write_bytes(b"no archive")
  refuses(read, r"cannot be read \(BadZipFile")
  for wrong, message in (
    (images / 255, r"float64 \[23, 6, 5, 3\]; expected arr_0, uint8"),
    (images[0], r"uint8 \[6, 5, 3\]; expected arr_0"),
    (np.array([{}]), "Python objects"),
    (np.asfortranarray(images), "Fortran"),
  ):
    np.savez(path, wrong)
    refuses(read, message)
  np.savez(path, images, LABELS[1:])
  refuses(read, r"arr_1\.npy, int64 \[22\]; expected .* 23 images")
  np.savez(path, images, LABELS - 1)
  refuses(read, "labels from -1 to 1; expected 0 or more")
  np.savez(path, mu=images)
  refuses(read, "holds mu; expected arr_0")


def test_places_that_are_no_sets(images, tmp_path):
  with pytest.raises(FileNotFoundError, match="does not exist; expected"):
    sets.open_set(tmp_path / "nowhere")
  (tmp_path / "list.txt").write_text("a")
  refuses(lambda: sets.open_set(tmp_path / "list.txt"), r"no folder and no")
  write_folder(tmp_path / "both", images)
  write_folder(tmp_path / "both" / "more", images)
  refuses(lambda: sets.open_set(tmp_path / "both"), "side by side; expected")
  np.savez(tmp_path / "set.npz", images)
  refuses(lambda: sets.open_set(tmp_path / "set.npz", 4), "image_size is 4")


def test_saved_images_that_are_not_whole(images, tmp_path):
  for kind in ("png", "array_record"):
    write_saved(tmp_path / kind, images, LABELS, kind)
  name = "images-00001-of-00003"
  (tmp_path / "png" / name / "00013.png").unlink()
  with pytest.raises(FileNotFoundError, match=r"00013\.png"):
    list(sets.open_set(tmp_path / "png").rows(np.arange(COUNT)))
  record = tmp_path / "array_record" / f"{name}.array_record"
  record.write_bytes(record.read_bytes()[:200])
  opened = sets.open_set(tmp_path / "array_record")
  refuses(lambda: list(opened.rows(np.arange(COUNT))), "is damaged .*; copy")
  (tmp_path / "png" / f"{name}.json").unlink()
  refuses(lambda: sets.open_set(tmp_path / "png"), "lacks 1 of its 3 shards")


def test_an_archive_is_written_whole_or_not(images, tmp_path):
  path = tmp_path / "set.npz"
  refuses(
    lambda: archives.write(path, images.shape, [images[1:]], LABELS),
    "was given 1980 bytes of images; expected 2070",
  )
  assert list(tmp_path.iterdir()) == []
