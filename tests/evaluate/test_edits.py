"""The experiment with edits measures, checks, resumes and draws."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import small

from experiments import edits, rows, tables
from marjax.evaluate import run
from marjax.generate.settings import Settings
from marjax.head.reverse import ReverseSettings
from marjax.pipeline import Pipeline

FEW = {
  name: edit._replace(regions=edit.regions[:1])
  for name, edit in edits.EDITS.items()
}


@pytest.fixture(scope="module")
def pipe():
  sampling = Settings(
    num_ar_steps=2, num_buckets=1, head=ReverseSettings(num_steps=2, start=900)
  )
  experiment = dataclasses.replace(small.EXPERIMENT, sampling=sampling)
  mesh = small.one_device()
  return Pipeline.of_experiment(experiment, small.params(), mesh, 7)


class AlwaysThree:
  """Sees a 3 in everything."""

  def predict(self, pixels):
    return np.full(len(pixels), 3)


@pytest.fixture
def real():
  """Four test digits of each class, with a classifier that sees only 3."""
  labels = np.arange(40) % 10
  pixels = np.random.RandomState(0).randint(256, size=(40, 8, 8, 1))
  test = SimpleNamespace(images=pixels.astype(np.uint8), labels=labels)
  return run.Real(test, test, AlwaysThree())


def test_regions_are_as_large_as_they_say(pipe):
  shares = dict.fromkeys(edits.HALVES, 1 / 2)
  shares |= {"middle rows": 1 / 2, "middle columns": 1 / 2}
  shares |= {"all but the bottom quarter": 3 / 4}
  shares |= {"all but the left quarter": 3 / 4}
  shares |= {"scattered, 3 of 4 tokens": 3 / 4}
  shares |= {"scattered, 7 of 8 tokens": 7 / 8}
  assert list(shares) == list(edits.REGIONS)
  for name, share in shares.items():
    found = edits.masks_of(pipe, name, 3).mean((1, 2))
    np.testing.assert_array_equal(found, share, err_msg=name)
  columns = edits.masks_of(pipe, "middle columns", 1)[0]
  np.testing.assert_array_equal(columns[0], [0, 0, 1, 1, 1, 1, 0, 0])
  assert (columns == columns[0]).all()
  first, second = edits.masks_of(pipe, "scattered, 3 of 4 tokens", 2)
  assert (first != second).any()


def test_another_label_is_any_but_the_own():
  edit = edits.EDITS["another label"]
  own = np.arange(400) % 10
  first, second = (edits.asked_labels(edit, own, 10, seed) for seed in (0, 1))
  shift = (first - own) % 10
  assert set(shift) == set(range(1, 10))
  assert set(first) == set(range(10))
  assert (first != second).any()
  assert edits.asked_labels(edits.EDITS["inpaint"], own, 10, 0) is own
  none = edits.EDITS["inpaint, no label"]
  assert edits.asked_labels(none, own, 10, 0) is None


def test_what_the_classifier_sees_is_what_is_counted(pipe, real):
  edit = edits.Edit("another", Settings(), ("left half",))
  row = edits.measure(pipe, real, edit, "left half", 0)
  asked = edits.asked_labels(edit, real.test.labels, 10, 0)
  assert row["asked_label_accuracy"] == np.mean(asked == 3)
  assert row["own_label_accuracy"] == row["grey_accuracy"] == 0.1
  assert row["real_test_accuracy"] == 0.1
  assert row["share_drawn"] == 0.5


@pytest.mark.slow
def test_a_kept_latent_that_changes_stops_the_experiment(pipe, real):
  images = real.test.images[:2]
  before = pipe.encode(images)
  mask = edits.masks_of(pipe, "top half", 2)
  edited = pipe.edit(images, mask, 3)
  edits.check_kept(edited, before)
  wrong = edited.latents.copy()
  wrong[1, 7, 0, 0] = np.nextafter(wrong[1, 7, 0, 0], np.float32(9))
  edited = dataclasses.replace(edited, latents=wrong)
  with pytest.raises(ValueError, match="1 of 64 latents that were to be kept"):
    edits.check_kept(edited, before)


@pytest.mark.slow
def test_it_resumes_draws_and_has_a_line_per_edit(
  pipe, real, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(edits, "load", lambda directory: pipe)
  monkeypatch.setattr(edits.run, "load_real", lambda data: real)
  monkeypatch.setattr(edits, "EDITS", FEW)
  out, png = tmp_path / "edits.jsonl", tmp_path / "edits.png"
  flags = ["--checkpoint", "work", "--out", str(out), "--num_seeds"]
  assert edits.main([*flags, "1"]) == 0
  assert "already there" not in capsys.readouterr().out
  assert edits.main([*flags, "2", "--picture", str(png)]) == 0
  assert capsys.readouterr().out.count("already there") == len(FEW)
  found = rows.read(out)
  assert [row["seed"] for row in found] == [0] * len(FEW) + [1] * len(FEW)
  assert {row["num_images"] for row in found} == {40}
  assert png.stat().st_size > 1000
  text = tables.tables(tmp_path, tmp_path / "none.jsonl")
  line = "| inpaint | left half | 50% | 0.100 ± 0.000 | 0.100 ± 0.000 | 0.100 |"
  assert f"{line}\n" in text
  assert "| inpaint, no label | left half | 50% | – | 0.100" in text
  assert text.count("| left half |") == len(FEW)
  assert "in 40 real test digits, edited; seeds 0 to 1; 7 steps" in text
  # A picture that is there is not replaced, and nothing is measured first.
  assert edits.main([*flags, "3", "--picture", str(png)]) == 2
  assert len(rows.read(out)) == 2 * len(FEW)


def test_a_wrong_checkpoint_is_one_sentence(tmp_path, capsys):
  assert edits.main(["--checkpoint", str(tmp_path)]) == 2
  assert "is an empty folder; expected a released" in capsys.readouterr().err
