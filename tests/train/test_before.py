"""Work directories that earlier code wrote go on and load.

Parameters are called by the attributes of their modules, not by the files that
those stand in. The run is two steps of `tiny.py`, written before modules were
moved; what it generated then stands beside it.
"""

import json
import pathlib
import zipfile

import numpy as np
import pytest
from train.shared import tiny

import marjax
from marjax.release import workdir as workdirs
from marjax.train import loop

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture
def before(tmp_path):
  with zipfile.ZipFile(GOLDEN / "workdir_before_moves.zip") as archive:
    archive.extractall(tmp_path)
  path = tmp_path / "run" / "config.json"
  config = json.loads(path.read_text())
  # Fields were called otherwise then; that is refused, and told.
  del config["json_sha256"]
  with pytest.raises(ValueError, match=r"did you mean backbone\.masking"):
    marjax.load(path.parent)
  model, sampling = config["model"], config["sampling"]
  backbone = model["backbone"] | {"masking": model.pop("masking")}
  classes, share = backbone.pop("num_classes"), backbone.pop("label_dropout")
  backbone["condition"] = {"num_classes": classes, "dropout": share}
  head = {"num_steps": sampling["num_diffusion_steps"]}
  config["model"] = model | {"backbone": backbone}
  config["sampling"] = {"num_ar_steps": sampling["num_ar_steps"], "head": head}
  path.write_text(json.dumps(config))
  files = path.with_name("files.json")
  assert not files.exists()
  return path.parent


def test_it_loads_and_generates_what_it_did(before):
  latents = marjax.load(before).latents([0, 1, 0, 1])
  expected = np.load(GOLDEN / "workdir_before_moves.npy")
  # Two steps from noise: the first multiplies rounding by 316.
  np.testing.assert_allclose(latents, expected, rtol=1e-3)


def test_it_goes_on(quick, before):
  loop.train(tiny(num_steps=4), before)
  assert workdirs.latest_step(before / "checkpoints") == 4
