"""Files of the moments of real images, in all layouts that are in circulation.

1. An .npz of arrays; a file that would run code, a pickle, is refused.

       mu, sigma                pytorch-fid, torch-fidelity's fork for MAR
       ref_mu, ref_sigma        MeanFlow
       a PyTorch file of both   torch-fidelity, see `torch_cache`
       mu, sigma, mu_s, sigma_s, arr_0
                                ADM: of a second map too, and images, which
                                distances do not need

2. Ours is ADM's with one array more, `about`: a JSON text of the network and
   the hash of its weights, the source of the images, how they were cropped,
   how many they are and of what size, and the SHA-256 of the numbers. Other
   programs read the file and leave that array alone.
3. Where a file does not say its network, it is that of the FID, as long as its
   numbers are as many as that network's.
"""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8

from marjax import outputs, schema
from marjax.evaluate.networks.protocol import Network
from marjax.evaluate.scores import torch_cache
from marjax.evaluate.scores.gathered import Gathered
from marjax.evaluate.scores.moments import Known
from marjax.release import json_files
from marjax.release.digest import digest
from marjax.schema import Count, check
from marjax.version import __version__

NAMES = (("mu", "sigma"), ("ref_mu", "ref_sigma"))
SPATIAL = ("mu_s", "sigma_s")


@schema.config
class About:
  """What statistics are of; texts are "" and numbers 0 where unknown.

  Attributes:
    network: its name.
    weights: SHA-256 of its weights' file.
    source: of the images.
    crop: what was done to them before they were seen.
    image_size: rows and columns of the images that were seen, 0 for several.
    count: of images.
    marjax: version that wrote the file.
  """

  network: str = ""
  weights: str = ""
  source: str = ""
  crop: str = ""
  image_size: Count = 0
  count: Count = 0
  marjax: str = ""


class Statistics(NamedTuple):
  """Moments of real images, of a network's features.

  Attributes:
    about: what they are of.
    mean: of the features.
    covariance: of the features, the unbiased one.
    spatial_mean, spatial_covariance: of a second map, or None.
  """

  about: About
  mean: Float64[np.ndarray, " features"]
  covariance: Float64[np.ndarray, "features features"]
  spatial_mean: Float64[np.ndarray, " places"] | None = None
  spatial_covariance: Float64[np.ndarray, "places places"] | None = None

  def gathered(self, network: Network, weights: str = "") -> Gathered:
    """The real side of scores that need no more than moments.

    Args:
      network: that sees the generated images.
      weights: SHA-256 of its weights' file, "" for unknown.

    Raises:
      ValueError: the statistics are of another network, or other weights.
    """
    about = self.about
    assumed = "" if about.network else " and does not say which"
    is_same = about.network == network.name or (
      not about.network and network.distance == "fid"
    )
    check(
      is_same and len(self.mean) == network.num_features,
      f"the statistics are of {len(self.mean)} features of"
      f" {about.network or 'the Inception network'}{assumed}, and the images"
      f" are seen by {network.name}, which has {network.num_features}; expected"
      " statistics of the same network: make them with marjax statistics.",
    )
    check(
      not weights or not about.weights or weights == about.weights,
      f"the statistics were made with other weights of {network.name}"
      f" (SHA-256 {about.weights[:12]}..., these are {weights[:12]}...);"
      " expected the same file of weights for both.",
    )
    spatial = None
    if self.spatial_mean is not None and network.num_places:
      check(
        len(self.spatial_mean) == network.num_places,
        f"the statistics have {len(self.spatial_mean)} features of the second"
        f" map and {network.name} has {network.num_places}; expected the same"
        " map.",
      )
      spatial = Known(about.count, self.spatial_mean, self.spatial_covariance)
    known = Known(about.count, self.mean, self.covariance)
    return Gathered(network, known, spatial)


def of_gathered(gathered: Gathered, **about: Any) -> Statistics:
  """Statistics of real images that were gathered.

  Args:
    about: fields of `About`, but for network, count and marjax.
  """
  spatial = gathered.spatial
  return Statistics(
    About(
      network=gathered.network.name,
      count=gathered.count,
      marjax=__version__,
      **about,
    ),
    gathered.moments.mean,
    gathered.moments.covariance,
    None if spatial is None else spatial.mean,
    None if spatial is None else spatial.covariance,
  )


def write(
  path: str | os.PathLike,
  statistics: Statistics,
  images: UInt8[np.ndarray, "images rows columns channels"] | None = None,
  overwrite: bool = False,
) -> str:
  """Writes statistics, and returns the SHA-256 of their numbers.

  Args:
    path: a name that ends in .pt is written as torch-fidelity caches them, with
      nothing of what they are of; any other as .npz.
    images: ten thousand or so of the real ones, which ADM's program takes
      precision and recall from; None for none.

  Raises:
    OSError: the file exists, or cannot be written.
  """
  arrays = {"mu": statistics.mean, "sigma": statistics.covariance}
  if statistics.spatial_mean is not None:
    arrays["mu_s"] = statistics.spatial_mean
    arrays["sigma_s"] = statistics.spatial_covariance
  sha256 = digest(arrays)
  if outputs.local(path).suffix == ".pt":
    content = torch_cache.written(*list(arrays.values())[:2])
    outputs.write(path, content, overwrite)
    return sha256
  about = {**schema.to_dict(statistics.about), "sha256": sha256}
  if images is not None:
    arrays["arr_0"] = images
  arrays["about"] = np.array(json_files.write_json(about).decode())
  with (
    outputs.replacing(path, overwrite) as temporary,
    temporary.open("wb") as file,
  ):
    np.savez(file, **arrays)
  return sha256


def read(path: str | os.PathLike) -> Statistics:
  """Statistics of a file, of any of the layouts.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no such file, is damaged, or holds no covariance.
  """
  path = outputs.local(path)
  if not path.is_file():
    raise FileNotFoundError(
      f"there are no statistics at {path}; expected an .npz file: make one with"
      " marjax statistics."
    )
  with _opened(path) as file:
    names = list(file)
    pairs = [pair for pair in NAMES if set(pair) <= set(names)][:1]
    check(
      bool(pairs),
      f"{path} has the arrays {', '.join(names[:8]) or 'none'}; expected mu and"
      " sigma (or ref_mu and ref_sigma), a mean and a covariance.",
    )
    if set(SPATIAL) <= set(names):
      pairs.append(SPATIAL)
    arrays = [_moments(file, pair, path) for pair in pairs]
    about = _about(file, path)
  spatial = arrays[1] if len(arrays) > 1 else (None, None)
  return Statistics(about, *arrays[0], *spatial)


@contextlib.contextmanager
def _opened(path) -> Iterator[Mapping[str, np.ndarray]]:
  """The arrays of a file, what goes wrong in it as one sentence."""
  with path.open("rb") as content:
    try:
      file = np.load(content, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
      raise ValueError(_no_npz(path)) from error
    check(isinstance(file, np.lib.npyio.NpzFile), _no_npz(path))
    try:
      yield torch_cache.read(path) if torch_cache.is_one(file.files) else file
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
      raise ValueError(
        f"{path} is damaged ({outputs.reason(error)}); expected an .npz file of"
        " statistics: copy or make it again."
      ) from error


def _no_npz(path) -> str:
  return (
    f"{path} is no .npz file of arrays; expected one with mu and sigma: a"
    " pickle is not read, since it may run code."
  )


def _moments(file, pair: tuple[str, str], path) -> list[np.ndarray]:
  """A mean and a covariance, checked, in float64."""
  arrays = []
  for name in pair:
    try:
      array = file[name]
    except ValueError as error:  # an array of objects
      raise ValueError(_no_npz(path)) from error
    check(
      array.dtype.kind in "fiu",
      f"{name} of {path} is of type {array.dtype}; expected numbers.",
    )
    arrays.append(array.astype(np.float64))
  mean, covariance = arrays
  check(
    mean.ndim == 1 and covariance.shape == (len(mean), len(mean)),
    f"{pair[0]} and {pair[1]} of {path} have shapes {mean.shape} and"
    f" {covariance.shape}; expected [D] and [D, D].",
  )
  check(
    bool(np.isfinite(mean).all() and np.isfinite(covariance).all()),
    f"{pair[0]} or {pair[1]} of {path} holds a number that is not finite;"
    " expected finite moments: make the statistics again.",
  )
  scale = np.abs(covariance).max(initial=0)
  check(
    bool(
      np.abs(covariance - covariance.T).max(initial=0) <= 1e-4 * scale
      and covariance.diagonal().min(initial=0) >= 0
    ),
    f"{pair[1]} of {path} is no covariance; expected a symmetric matrix with no"
    " negative variances.",
  )
  return arrays


def _about(file, path) -> About:
  """What a file says of itself, its hash compared; of others' nothing."""
  if "about" not in file:
    return About()
  text = str(file["about"])
  about = json_files.read_json(text.encode(), f"about of {path}")
  sha256 = about.pop("sha256", "")
  arrays = {name: file[name] for name in (*NAMES[0], *SPATIAL) if name in file}
  check(
    sha256 == digest(arrays),
    f"the numbers of {path} are not those that were written: their SHA-256 is"
    " another; expected the file that marjax wrote: copy or make it again.",
  )
  return schema.from_dict(About, about, f"about of {path}")
