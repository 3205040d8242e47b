"""Three scores of generated images against real ones, without any download.

1. Label accuracy: a support vector classifier, fit on real training images,
   says how often an image shows the class that was asked for.
2. Fréchet ratio: distance(generated, real test) over distance(real train, real
   test), each the Fréchet distance of two Gaussians,

       |m1 - m2|² + tr(S1 + S2 - 2 (S1^½ S2 S1^½)^½),

   of features of the network `pixels`, in the space of the leading principal
   components of the training images.
3. Near copies: generated images nearer to a training image than almost every
   real test image is, in features of that network: see `scores.neighbours`.

What they cannot say. A classifier's accuracy is blind to variety, and rises
when only typical images are drawn. The Fréchet distance of two finite samples
of one distribution is not 0: it is about c · (1/n1 + 1/n2). The denominator is
that floor for the real images there are, and both distances share the test
images, the smallest set, so a perfect generator scores near 1, not 0; the fewer
images are generated, the higher. The ratio cannot tell learning from repeating:
`repeated_ratio` scores training images drawn with replacement. For 1000 digits,
100 per class, that is 1.37 ± 0.13 over twenty draws (10 000: 1.09). So a ratio
near 1.4 is as good as can be seen, and differences below 0.3 are noise. Near
copies do tell: repeated images score 1 there, unseen real ones 0.01 by
construction.

Images are uint8 [N, H, W, C], labels int [N]; moments are float64, features and
distances to the nearest float32.
"""

from typing import Any, NamedTuple

import numpy as np

from marjax.evaluate.networks.pixels import Pixels
from marjax.evaluate.scores import frechet, kinds
from marjax.evaluate.scores.gathered import Gathered
from marjax.evaluate.scores.moments import Moments
from marjax.schema import check

NETWORK = Pixels()
NUM_COMPONENTS = 20


def check_count(count: int, what: str) -> None:
  """Refuses fewer images than the Fréchet ratio can be computed of."""
  check(
    count > NUM_COMPONENTS,
    f"{what} is {count}; expected more than {NUM_COMPONENTS} images, for the"
    f" Fréchet ratio's {NUM_COMPONENTS} principal components.",
  )


def check_real(
  images: np.ndarray, labels: np.ndarray, num_classes: int, split: str
) -> None:
  """Refuses real images that generated ones cannot be scored against.

  Raises:
    ValueError: too few of them, or of a class.
  """
  check_count(len(images), f"the number of images in split {split!r}")
  counts = np.bincount(labels, minlength=num_classes)
  check(
    num_classes > 1 and bool(counts.all()),
    f"split {split!r} has no images of {np.sum(counts == 0)} of {num_classes}"
    f" classes, the first {np.argmin(counts)}; expected two classes or more,"
    " and images of each, to score by: choose another split or folder.",
  )


def fit_classifier(images: np.ndarray, labels: np.ndarray):
  """A scikit-learn SVC with an RBF kernel, fit on real training images.

  For the digits gamma is 0.001; with more pixels it falls in proportion.
  """
  from sklearn.svm import SVC

  levels = _levels(images)
  return SVC(gamma=0.001 * 64 / levels.shape[1]).fit(levels, labels)


def label_accuracy(
  classifier, images: np.ndarray, labels: np.ndarray | int
) -> float:
  """Share of images in which the classifier sees their label, 0 to 1."""
  return float(np.mean(classifier.predict(_levels(images)) == labels))


def accuracy_by_class(
  classifier, images: np.ndarray, labels: np.ndarray
) -> dict[int, float]:
  """Label accuracy of the images of each class."""
  return {
    label: label_accuracy(classifier, images[labels == label], label)
    for label in np.unique(labels).tolist()
  }


class FrechetRatio(NamedTuple):
  """The ratio, and the share of the training images' variance that it sees."""

  ratio: float
  num_components: int
  variance_kept: float


def seen(images: np.ndarray) -> Gathered:
  """What the network sees of images: their features, and moments of these."""
  features = np.asarray(NETWORK({}, images).pooled)
  return Gathered(NETWORK, _moments(features), features=features)


def _moments(features: np.ndarray) -> Moments:
  """Those of features that are all there, whole in float64."""
  mean = features.mean(0, dtype=np.float64)
  return Moments(len(features), mean, (features - mean).T @ (features - mean))


def frechet_ratio(
  generated: Moments, train: Moments, test: Moments
) -> FrechetRatio:
  """How much farther from the test images generated ones are than real ones.

  Raises:
    ValueError: a set has no more images than components; or the real sets are
      one.
  """
  for part in (generated, train, test):
    check_count(part.count, "the number of images in a set")
  variances, axes = np.linalg.eigh(train.covariance)
  axes = axes[:, -NUM_COMPONENTS:]
  drawn, known, unseen = (
    frechet.gaussian(part.mean @ axes, axes.T @ part.covariance @ axes)
    for part in (generated, train, test)
  )
  floor = frechet.between(known, unseen)
  check(
    floor > 1e-9 * unseen.trace,
    "training and test images have the same moments; expected two different"
    " sets of real images: check the splits.",
  )
  share = variances[-NUM_COMPONENTS:].sum() / variances.sum()
  ratio = frechet.between(drawn, unseen) / floor
  return FrechetRatio(ratio, NUM_COMPONENTS, float(share))


def scores(
  generated: np.ndarray, train: np.ndarray, test: np.ndarray
) -> dict[str, Any]:
  """Fréchet ratio and near copies of images; errors as of these."""
  sets = [seen(images) for images in (generated, train, test)]
  ratio = frechet_ratio(*(each.moments for each in sets))
  return {
    "frechet_ratio": ratio.ratio,
    **kinds.compare(["copies"], *sets).scores,
    "frechet": ratio._asdict(),
  }


def repeated_ratio(
  train: np.ndarray,
  train_labels: np.ndarray,
  test: np.ndarray,
  labels: np.ndarray,
  num_draws: int = 20,
) -> tuple[float, float]:
  """The Fréchet ratio of training images drawn with replacement.

  Args:
    labels: classes of the images to draw, as those of the generated ones; a
      class without training images is left out.
    num_draws: sets drawn; always the same ones.

  Returns:
    Mean and standard deviation over the draws.
  """
  rng, ratios = np.random.default_rng(0), []
  known, unseen = seen(train), seen(test)
  for _ in range(num_draws):
    rows = [
      rng.choice(np.flatnonzero(train_labels == label), np.sum(labels == label))
      for label in np.intersect1d(labels, train_labels)
    ]
    drawn = _moments(known.features[np.concatenate(rows)])
    ratio = frechet_ratio(drawn, known.moments, unseen.moments)
    ratios.append(ratio.ratio)
  return float(np.mean(ratios)), float(np.std(ratios))


def _levels(images: np.ndarray) -> np.ndarray:
  """uint8 [N, H, W, C] → [N, H·W·C], 0 to 16 as in scikit-learn's digits."""
  return images.reshape(len(images), -1) * (16 / 255)
