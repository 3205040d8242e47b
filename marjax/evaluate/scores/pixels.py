"""Three scores of generated images against real ones, for small images.

1. Label accuracy: a support vector classifier, fit on real training images,
   says how often an image shows the class that was asked for.
2. Fréchet ratio: distance(generated, real test) over distance(real train, real
   test), each the Fréchet distance of two Gaussians,

       |m1 - m2|² + tr(S1 + S2 - 2 (S1^½ S2 S1^½)^½),

   fit in the space of the leading principal components of the training images.
3. Near copies: generated images nearer to a training image than almost every
   real test image is, as of features of a network; here they are the pixels.

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

Images are uint8 [N, H, W, C], labels int [N]; arithmetic is float64, but for
distances to the nearest, which are told in float32 to a millionth.
"""

from typing import NamedTuple

import numpy as np

from marjax.evaluate.scores import neighbours
from marjax.evaluate.scores.frechet import frechet_distance
from marjax.schema import check

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

  Pixels count from 0 to 16, as in scikit-learn's digits, for which gamma is
  0.001; with more pixels gamma falls in proportion.
  """
  from sklearn.svm import SVC

  pixels = _pixels(images) * (16 / 255)
  return SVC(gamma=0.001 * 64 / pixels.shape[1]).fit(pixels, labels)


def label_accuracy(
  classifier, images: np.ndarray, labels: np.ndarray | int
) -> float:
  """Share of images in which the classifier sees their label, 0 to 1."""
  seen = classifier.predict(_pixels(images) * (16 / 255))
  return float(np.mean(seen == labels))


def accuracy_by_class(
  classifier, images: np.ndarray, labels: np.ndarray
) -> dict[int, float]:
  """Label accuracy of the images of each class."""
  return {
    label: label_accuracy(classifier, images[labels == label], label)
    for label in np.unique(labels).tolist()
  }


class FrechetRatio(NamedTuple):
  """The ratio and what it is made of.

  Attributes:
    ratio: generated_to_test / train_to_test.
    generated_to_test: Fréchet distance, in squared pixel values (0 to 255).
    train_to_test: the same between the two sets of real images.
    num_components: D, principal components kept.
    variance_kept: share of the training images' variance in them.
  """

  ratio: float
  generated_to_test: float
  train_to_test: float
  num_components: int
  variance_kept: float


class _Space(NamedTuple):
  """Where distances are taken: what of the real images is always the same.

  Twenty ratios of one pair of real sets take its principal components and
  moments once: 0.013 s of a core for the digits in place of 0.075 s.
  """

  axes: np.ndarray
  variance_kept: float
  unseen: tuple[np.ndarray, np.ndarray]
  train_to_test: float

  def ratio(self, pixels: np.ndarray) -> FrechetRatio:
    """That of generated pixels [N, H·W·C]."""
    made = moments(pixels @ self.axes)
    generated_to_test = frechet_distance(*made, *self.unseen)
    return FrechetRatio(
      generated_to_test / self.train_to_test,
      generated_to_test,
      self.train_to_test,
      self.axes.shape[1],
      self.variance_kept,
    )


def _space(train: np.ndarray, test: np.ndarray, num_components: int) -> _Space:
  axes, variance_kept = principal_axes(train, num_components)
  seen, unseen = (moments(pixels @ axes) for pixels in (train, test))
  train_to_test = frechet_distance(*seen, *unseen)
  if train_to_test <= 1e-9 * np.trace(unseen[1]):
    raise ValueError(
      "training and test images have the same moments; expected two different"
      " sets of real images: check the splits."
    )
  return _Space(axes, variance_kept, unseen, train_to_test)


def frechet_ratio(
  generated: np.ndarray,
  train: np.ndarray,
  test: np.ndarray,
  num_components: int = NUM_COMPONENTS,
) -> FrechetRatio:
  """How much farther from the test images generated ones are than real ones.

  Raises:
    ValueError: a set has no more images than components, or an image has fewer
      pixels.
  """
  sets = [_pixels(images) for images in (generated, train, test)]
  smallest = min(len(pixels) for pixels in sets)
  if smallest <= num_components or sets[1].shape[1] < num_components:
    raise ValueError(
      f"the smallest set has {smallest} images of {sets[1].shape[1]} pixels;"
      f" expected more than {num_components} images and as many pixels, for"
      f" {num_components} principal components."
    )
  return _space(*sets[1:], num_components).ratio(sets[0])


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
  rng = np.random.default_rng(0)
  pixels = _pixels(train)
  space, ratios = _space(pixels, _pixels(test), NUM_COMPONENTS), []
  for _ in range(num_draws):
    rows = [
      rng.choice(np.flatnonzero(train_labels == label), np.sum(labels == label))
      for label in np.intersect1d(labels, train_labels)
    ]
    ratios.append(space.ratio(pixels[np.concatenate(rows)]).ratio)
  return float(np.mean(ratios)), float(np.std(ratios))


def moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean [D] and unbiased covariance [D, D] of rows [N, D]."""
  return rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False))


def principal_axes(
  rows: np.ndarray, num_components: int
) -> tuple[np.ndarray, float]:
  """Leading principal axes [D, num_components], and their share of variance."""
  _, singular, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
  variance = singular**2
  kept = variance[:num_components].sum() / variance.sum()
  return axes[:num_components].T, float(kept)


def near_copy_rate(
  generated: np.ndarray, train: np.ndarray, test: np.ndarray
) -> float:
  """Share of near copies of training images, see `neighbours.is_near_copy`."""
  sets = [_pixels(each).astype(np.float32) for each in (generated, train, test)]
  is_copy = neighbours.is_near_copy(
    generated=sets[0], train=sets[1], unseen=sets[2]
  )
  return float(np.mean(is_copy))


def _pixels(images: np.ndarray) -> np.ndarray:
  """uint8 [N, H, W, C] → float64 [N, H·W·C]."""
  if images.ndim != 4 or images.dtype != np.uint8 or not len(images):
    raise ValueError(
      f"images are {images.dtype} of shape {images.shape}; expected at least"
      " one uint8 [H, W, C]."
    )
  return images.reshape(len(images), -1).astype(np.float64)
