"""Models that are shared: pushed to a Hub on this machine, loaded by name."""

import json
import re

import numpy as np
import pytest
from huggingface_hub import constants, utils
from PIL import Image

import marjax
from marjax.cli import main
from marjax.convert import hub
from marjax.release import directory, model_card
from marjax.release.card import MANIFEST
from tests import small
from tests.convert import hub_server

# What the library does with its own client, which has another way by now.
pytestmark = pytest.mark.filterwarnings(
  "ignore:Use 'content=:DeprecationWarning"
)


@pytest.fixture(scope="module")
def server():
  with hub_server.running() as server:
    yield server


@pytest.fixture(scope="module")
def release(tmp_path_factory):
  """A release with a picture and a report beside its weights."""
  folder = tmp_path_factory.mktemp("hub") / "mine"
  small.save_release(folder)
  Image.new("L", (8, 8), 77).save(folder / "samples.png")
  report = {"fd_mobilenet": 41.5, "num_images": 100, "settings": {"seed": 0}}
  (folder / "report.json").write_text(json.dumps(report))
  return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def at_home(server, home, monkeypatch):
  """One who is logged in, and whose Hub is the server."""
  values = {
    "ENDPOINT": server.url,
    "HUGGINGFACE_CO_URL_TEMPLATE": server.url
    + "/{repo_id}/resolve/{revision}/{filename}",
    "HF_HUB_CACHE": str(home),
    "HF_HUB_DISABLE_XET": True,
  }
  for name, value in values.items():
    monkeypatch.setattr(constants, name, value)
  monkeypatch.setenv("HF_TOKEN", "may-write")
  utils.disable_progress_bars()


@pytest.fixture
def pushed(release, server, at_home, capsys):
  """What the command prints, of a repository that it makes once."""
  if "me/mine" not in server.repos:
    words = ["push", str(release), "me/mine", "--private"]
    assert main.main(words) == 0
  return capsys.readouterr().out


def test_a_push_is_one_commit_of_a_whole_release(pushed, release, server):
  assert pushed.splitlines() == [
    f"{server.url}/me/mine",
    'load it with marjax.load("hf://me/mine")',
  ]
  repo = server.repos["me/mine"]
  assert repo.is_private
  assert len(repo.branches["main"]) == 2
  files = repo.commits[repo.resolve("main")]
  weights = {path.name for path in release.glob("*.safetensors")}
  assert set(files) == weights | {MANIFEST, "README.md", "samples.png"}
  assert files["samples.png"] == (release / "samples.png").read_bytes()
  for name in weights:
    assert files[name] == (release / name).read_bytes()


def test_the_page_says_what_is_known(pushed, server):
  repo = server.repos["me/mine"]
  page = repo.commits[repo.resolve("main")]["README.md"].decode()
  assert page.startswith("---\nlibrary_name: marjax\n")
  assert 'marjax.load("hf://me/mine")' in page
  assert "![images of small](samples.png)" in page
  assert "| fd mobilenet | 41.5 |" in page
  assert "| guidance_scale | 1.0 |" in page
  assert "seed" not in page


def test_it_loads_by_its_name_and_is_fetched_once(pushed, release, server):
  settings = {"num_ar_steps": 2, "head": {"num_steps": 2}}
  ours = marjax.load(release).generate([0, 1], settings=settings)
  server.requests.clear()
  theirs = marjax.load("hf://me/mine")
  np.testing.assert_array_equal(theirs.generate([0, 1], 0, settings), ours)
  assert any(name.endswith(".safetensors") for _, name in server.requests)
  server.requests.clear()
  hub.fetched("hf://me/mine@main")
  assert not any("/resolve/" in name for _, name in server.requests)


def test_without_a_network_it_is_taken_from_before(pushed, monkeypatch):
  before = hub.fetched("me/mine")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  assert hub.fetched("me/mine") == before
  with pytest.raises(OSError, match="hf://me/other was never fetched and the"):
    hub.fetched("me/other")


def test_what_is_not_there_is_said(pushed):
  with pytest.raises(FileNotFoundError, match="hf://me/none is not on the Hub"):
    hub.fetched("me/none")
  with pytest.raises(FileNotFoundError, match="no revision none; expected a b"):
    hub.fetched("me/mine@none")


def test_a_token_that_may_not_write_is_said(release, monkeypatch, capsys):
  monkeypatch.setenv("HF_TOKEN", "other")
  assert main.main(["push", str(release), "me/mine"]) == 2
  said = capsys.readouterr().err
  assert re.search(r"the Hub refused hf://me/mine \(401\); log in", said)


def test_a_branch_of_its_own(pushed, release, server):
  hub.push(release, "me/mine@second")
  assert set(server.repos["me/mine"].branches) == {"main", "second"}
  assert len(server.repos["me/mine"].branches["main"]) == 2


@pytest.mark.parametrize(
  "name", ["hf://mine", "hf://", "hf://a/b/c", "hf://a/b@", "a/"]
)
def test_names(name):
  with pytest.raises(ValueError, match="is no name of the Hub; expected hf://"):
    hub.parse(name)


def test_a_report_must_be_one(release, tmp_path):
  (tmp_path / "r.json").write_text("[]")
  with pytest.raises(ValueError, match=r"r.json is no JSON object; expected"):
    hub.push(release, "me/mine", report=tmp_path / "r.json")
  with pytest.raises(FileNotFoundError, match=r"picture a.png does not exist"):
    hub.push(release, "me/mine", picture="a.png")


def test_the_page_of_an_autoencoder(tmp_path):
  card = small.card(model=None, licence="MIT", codec=small.CODEC)
  manifest = directory.save(tmp_path / "kl", card, small.codec_params())
  page = model_card.text(manifest, "hf://a/b")
  assert "license: mit" in page
  assert "codec.reconstruct(images)" in page
  assert "## Settings" not in page
