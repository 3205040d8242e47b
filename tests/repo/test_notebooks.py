"""The notebooks are clean, and run from top to bottom on tiny models.

A copy of each is executed by the interpreter of the tests, in an empty folder.
A cell put behind the one tagged "parameters" names tiny checkpoints, or few
steps, so nothing is fetched and little is trained.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import nbformat
import pytest
import small
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

import marjax
from marjax.latents.kl import KLConfig
from marjax.release import directory
from marjax.release.card import Card
from marjax.release.workdir import card_of

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
EXECUTED = (
  "convert_and_check.ipynb",
  "data_flow.ipynb",
  "head_alone.ipynb",
  "own_pictures.ipynb",
  "sample.ipynb",
)

CODEC = KLConfig(
  image_size=8,
  base_width=32,
  multipliers=(1, 1),
  num_blocks=1,
  latent_channels=4,
  has_level_attention=False,
)


@pytest.fixture
def here(tmp_path, monkeypatch):
  """An empty folder; kernels started in it inherit what is set here."""
  kernel = {
    "argv": [
      *(sys.executable, "-m", "ipykernel_launcher"),
      *("-f", "{connection_file}"),
    ],
    "display_name": "the interpreter of the tests",
    "language": "python",
  }
  spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
  spec.parent.mkdir(parents=True)
  spec.write_text(json.dumps(kernel))
  # Nothing of a person's own set-up is read, nothing is written there.
  monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
  for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
    monkeypatch.setenv(name, str(tmp_path / name.lower()))
  # Without it jupyter warns that its folders will move.
  monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
  folder = tmp_path / "here"
  folder.mkdir()
  return folder


@pytest.fixture(scope="module")
def latents_release(tmp_path_factory):
  """A released model with a KL autoencoder inside."""
  folder = tmp_path_factory.mktemp("latents")
  codec_params = jax.jit(CODEC.init_params)(jax.random.key(0))
  card = Card(
    "tiny",
    CODEC,
    small.MODEL,
    small.EXPERIMENT.sampling,
    presets={"fast": marjax.Settings(num_ar_steps=4)},
  )
  directory.save(folder / "mar", card, small.params(), codec_params)
  return str(folder / "mar")


@pytest.fixture(scope="module")
def pixels_release(tmp_path_factory):
  """A released model of raw pixels."""
  folder = tmp_path_factory.mktemp("pixels") / "mar"
  directory.save(folder, card_of(small.EXPERIMENT), small.params())
  return str(folder)


@pytest.fixture(scope="module")
def published(tmp_path_factory, golden):
  """Files of the published layout: a model and its autoencoder."""
  torch = pytest.importorskip("torch")
  folder = tmp_path_factory.mktemp("published")

  def tensors(name):
    arrays = golden(name)
    return {key: torch.tensor(array) for key, array in arrays.items()}

  model = {
    "model": tensors("weights_model.npz"),
    "model_ema": tensors("weights_ema.npz"),
  }
  torch.save(model, folder / "mar.pth")
  torch.save({"model": tensors("vae_small_weights.npz")}, folder / "kl.ckpt")
  return folder


def read(name: str):
  """A notebook of the repository."""
  return nbformat.read(FOLDER / name, as_version=4)


def code_cells(notebook) -> list:
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def faults(notebook) -> list[str]:
  """What a notebook has that was left by running it, or lacks."""
  first, *others = code_cells(notebook)
  has_tag = [
    "parameters" in cell.metadata.get("tags", ()) for cell in (first, *others)
  ]
  found = {
    "outputs": any(cell.outputs for cell in (first, *others)),
    "counts": any(cell.execution_count for cell in (first, *others)),
    "parameters": has_tag != [True] + [False] * len(others),
    "ids": len({cell.id for cell in notebook.cells}) < len(notebook.cells),
    "metadata": sorted(notebook.metadata) != ["kernelspec", "language_info"],
    "kernel": notebook.metadata.get("kernelspec", {}).get("name") != "python3",
  }
  return [name for name, is_wrong in found.items() if is_wrong]


def with_values(notebook, values: dict):
  """Puts a cell with other values behind the parameters."""
  parameters = code_cells(notebook)[0]
  names = {line.targets[0].id for line in ast.parse(parameters.source).body}
  assert values.keys() <= names
  lines = [f"{name} = {value!r}" for name, value in values.items()]
  place = notebook.cells.index(parameters) + 1
  notebook.cells.insert(place, new_code_cell("\n".join(lines)))


def execute(notebook, folder: Path) -> tuple[str, int]:
  """The text that a notebook writes, and how many pictures it draws."""
  NotebookClient(
    notebook,
    timeout=600,
    kernel_name="python3",
    resources={"metadata": {"path": str(folder)}},
  ).execute()
  cells = code_cells(notebook)
  assert all(cell.execution_count for cell in cells)
  outputs = [output for cell in cells for output in cell.outputs]
  text = "".join(output.get("text", "") for output in outputs)
  assert "Warning" not in text
  return text, sum("image/png" in output.get("data", {}) for output in outputs)


def run(name: str, folder: Path, **values) -> tuple[str, int]:
  """Executes a notebook with other parameters; see `execute`."""
  notebook = read(name)
  with_values(notebook, values)
  return execute(notebook, folder)


@pytest.mark.slow
def test_sample_runs(latents_release, here):
  text, num_pictures = run("sample.ipynb", here, CHECKPOINT=latents_release)
  assert "16 tokens in 6 steps" in text
  assert num_pictures == 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["latents_release", "pixels_release"])
def test_data_flow_runs(kind, here, request):
  checkpoint = request.getfixturevalue(kind)
  text, num_pictures = run("data_flow.ipynb", here, CHECKPOINT=checkpoint)
  assert "z (1, 16, 32)" in text
  assert num_pictures == 8


@pytest.mark.slow
def test_convert_and_check_runs(published, here):
  text, num_pictures = run(
    "convert_and_check.ipynb",
    here,
    SOURCE=str(published / "mar.pth"),
    AUTOENCODER=str(published / "kl.ckpt"),
    NUM_HEADS=4,
  )
  assert "92 arrays of the ema weights, equal" in text
  assert num_pictures == 2


@pytest.mark.slow
def test_convert_and_check_needs_no_file_and_no_network(here, monkeypatch):
  for name in ("http_proxy", "https_proxy"):  # nobody is there
    monkeypatch.setenv(name, "http://127.0.0.1:9")
  golden = FOLDER.parent / "tests" / "golden"
  text, num_pictures = run("convert_and_check.ipynb", here, GOLDEN=str(golden))
  assert "92 arrays of the only weights, equal" in text
  last = text.splitlines()[-2:]
  assert [line.partition(":")[0] for line in last] == [
    "latents (3, 4, 4, 16)",
    "pictures (2, 48, 48, 3)",
  ]
  assert num_pictures == 2


@pytest.mark.slow
def test_sample_trains_a_model_where_there_is_none(here):
  text, num_pictures = run("sample.ipynb", here, NUM_STEPS=4)
  assert "step 4/4" in text
  assert "digits: 550,024 parameters" in text
  assert num_pictures == 5
  assert (here / "out" / "digits" / "config.json").exists()


@pytest.mark.slow
def test_own_pictures_runs(here):
  text, num_pictures = run(
    "own_pictures.ipynb", here, NUM_DRAWN=30, NUM_STEPS=4
  )
  assert "3 classes with names" in text
  assert "step 4/4" in text
  assert "(24, 16, 16, 1) disc square triangle" in text
  assert num_pictures == 3
  assert (here / "out" / "mine.png").exists()


@pytest.mark.slow
def test_head_alone_runs(here):
  text, num_pictures = run("head_alone.ipynb", here, NUM_STEPS=4, NUM_DRAWS=20)
  assert "inputs (732, 3) of which for training 432" in text
  rows = re.findall(
    r"^(flow head|Gaussian) +\d+% +\d+% +-?\d+\.\d\d nats$", text, re.M
  )
  assert rows == ["flow head", "Gaussian"]
  assert num_pictures == 1


@pytest.mark.parametrize("name", NAMES)
def test_what_a_notebook_installs_is_this_checkout(name):
  """`pip install` of no name that an index would be asked for."""
  parameters, install, *_ = code_cells(read(name))
  assert re.findall(r'^MARJAX = "(.+)"$', parameters.source, re.M) == [".."]
  assert (FOLDER.parent / "setup.py").is_file()
  line = re.compile(r'%pip install --quiet "\{MARJAX\}(?:\[([\w,]+)\])?"')
  (extras,) = line.findall(install.source)
  setup = (FOLDER.parent / "setup.py").read_text()
  for extra in filter(None, extras.split(",")):
    assert f'"{extra}": [' in setup


@pytest.mark.slow
def test_pip_takes_the_checkout_with_extras():
  """As the notebooks write it, from where they are; nothing is installed."""
  pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps"]
  shown = subprocess.run(
    [*pip, "--no-build-isolation", "--ignore-installed", "..[demo]"],
    cwd=FOLDER,
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  assert f"Would install marjax-{marjax.__version__}" in shown


def test_every_notebook_is_executed_here():
  assert tuple(NAMES) == EXECUTED


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_stripped(name):
  notebook = read(name)
  nbformat.validate(notebook)
  assert faults(notebook) == []
  text = (FOLDER / name).read_text(encoding="utf-8")
  assert text == nbformat.writes(notebook) + "\n"


def test_what_is_wrong_is_seen(here):
  notebook = new_notebook(cells=[new_code_cell("N = 1"), new_code_cell("N")])
  assert faults(notebook) == ["parameters", "metadata", "kernel"]
  with_values(notebook, {"N": 0})
  notebook.cells.append(new_code_cell("1 / N"))
  with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
    execute(notebook, here)
  assert faults(notebook)[:2] == ["outputs", "counts"]
