"""What one training run is: the meaning of a config file, as dataclasses.

A config file returns a nested mapping; `marjax.schema.from_dict` turns it into
an `Experiment`. Below this line there are only frozen, hashable dataclasses,
and a work directory's config.json is the same mapping.
"""

from dataclasses import field
from typing import Annotated, Literal

from marjax import schema
from marjax.generate.settings import Settings
from marjax.layers.lora import LoraConfig
from marjax.model import ModelConfig, token_words
from marjax.protocols import Codec
from marjax.schema import Count, Positive, Range, Seed, Share, check


@schema.config
class DataConfig:
  """Where images come from.

  Attributes:
    source: "digits" (scikit-learn's), "tfds" (any dataset by `name`),
      "folder" (class subfolders below `data_dir`), "synthetic", or "latents"
      (what `marjax cache-latents` wrote into `data_dir`).
    name: TFDS name. data_dir: folder of prepared datasets or of images.
    autoencoder: release, by name or folder, of the codec's weights. It must
      have made the cached latents; "" takes whichever it was. A codec whose
      latents are not cached, as a codebook, has its weights from there.
    image_size, channels: what every image must be cropped to.
    num_classes: at least those of the data; 0 for images in a folder without
      class folders.
    flip: mirror half of the training images.
    seed: of the shuffle. num_examples: size of the synthetic set.
    num_threads: that prepare batches.
    accept: fingerprint of changed data with which a run may go on; a refusal to
      resume names it. See `marjax.data.contents`.
    test_share: of the train split's images that are `test_split` instead, where
      a folder has no split of that name; which they are, their names tell.
    skip_unreadable: train without the files of a folder that are no pictures,
      whatever their names say, instead of refusing them.
  """

  source: Literal["digits", "tfds", "folder", "synthetic", "latents"]
  image_size: Annotated[int, Range(1, 2**14)]
  num_classes: Annotated[int, Range(0, 2**31 - 1)]
  channels: Annotated[int, Range(1, 64)] = 3
  name: str = ""
  data_dir: str = ""
  train_split: str = "train"
  test_split: str = "test"
  flip: bool = False
  seed: Seed = 0
  num_examples: Annotated[int, Range(1, 10**8)] = 1024
  num_threads: Annotated[int, Range(0, 1024)] = 2
  autoencoder: str = ""
  accept: str = ""
  test_share: Share = 0.0
  skip_unreadable: bool = False

  def __post_init__(self):
    check(
      self.test_share == 0 or self.source == "folder",
      f"data.test_share is {self.test_share:g} and data.source"
      f" {self.source!r}; expected 0, or the source 'folder': others have a"
      " test split of their own.",
    )
    check(
      self.test_share == 0 or self.train_split != self.test_split,
      f"data.train_split and data.test_split are both {self.train_split!r};"
      " expected another name for the share that is not trained on.",
    )

  @property
  def is_cached(self) -> bool:
    """Whether examples are records of a codec, not images."""
    return self.source == "latents"


@schema.config
class TrainingConfig:
  """The training recipe (spec section 6).

  Attributes:
    batch_size: images per step over all devices.
    num_microbatches: parts that a batch is worked on in, one after the other;
      gradients add up, so only memory and speed change.
    num_steps, total_epochs: give exactly one.
    base_learning_rate: per 256 images of batch; `learning_rate`, if given,
      is the absolute peak instead.
    warmup_steps, warmup_epochs: linear warm-up; give at most one.
    schedule: after the warm-up, "constant" or "cosine" to 0.
    optimizer: "adamw", or "muon", see `marjax.train.optimizer`.
    ema_rate: of the averaged parameters that are evaluated.
    ema_warmup: average faster in the first steps, min(rate, (1+n)/(10+n)).
    log_every, checkpoint_every: in steps.
    sample_every, evaluate_every: in steps; 0 for never. What is evaluated is
      the average, see `EvaluationConfig`.
    keep_checkpoints: newest checkpoints kept.
    checksums: hash the files of checkpoints, and compare on resume.
    log_ids: write down which examples made each update.
    init_from: published name, release or work directory whose weights the
      parameters and their average start from; "" for new ones. Only read before
      the first step; see `marjax.train.initial`.
    init_digest: of those weights; "" takes any, and config.json of the work
      directory notes which.
    init_fresh: patterns of parameters that start anew all the same.
    factors: (pattern, factor of the learning rate) of parameters; the first
      that matches a name counts. 0 freezes: neither trained nor averaged.
    lora: low-rank updates. With a rank all else is frozen that no factor names.
  """

  batch_size: Annotated[int, Range(1, 2**20)]
  num_microbatches: Annotated[int, Range(1, 2**20)] = 1
  num_steps: Positive | None = None
  total_epochs: Annotated[float, Range(0, 1e6, is_open=True)] | None = None
  base_learning_rate: Annotated[float, Range(0, 1e3)] = 1e-4
  learning_rate: Annotated[float, Range(0, 1e3)] | None = None
  warmup_steps: Count | None = None
  warmup_epochs: Annotated[float, Range(0, 1e6)] | None = None
  schedule: Literal["constant", "cosine"] = "constant"
  optimizer: Literal["adamw", "muon"] = "adamw"
  adam_b1: Share = 0.9
  adam_b2: Share = 0.95
  weight_decay: Annotated[float, Range(0, 1e3)] = 0.02
  clip_norm: Annotated[float, Range(0, 1e9, is_open=True)] = 3.0
  ema_rate: Share = 0.9999
  ema_warmup: bool = False
  log_every: Positive = 100
  checkpoint_every: Positive = 1000
  sample_every: Count = 0
  evaluate_every: Count = 0
  keep_checkpoints: Positive = 2
  checksums: bool = True
  log_ids: bool = False
  init_from: str = ""
  init_digest: str = ""
  init_fresh: tuple[str, ...] = ()
  factors: tuple[tuple[str, Annotated[float, Range(0, 1e3)]], ...] = ()
  lora: LoraConfig = field(default_factory=LoraConfig)

  def __post_init__(self):
    for name in ("init_digest", "init_fresh"):
      check(
        bool(self.init_from) or not getattr(self, name),
        f"training.{name} is {getattr(self, name)!r} and training.init_from is"
        " empty; expected the model that the run starts from: name it.",
      )
    check(
      bool(self.init_from) or not self.lora.rank,
      f"training.lora.rank is {self.lora.rank} and training.init_from is empty,"
      " so it would update random weights; expected a model to start from: name"
      " it, or set the rank to 0.",
    )
    check(
      (self.num_steps is None) != (self.total_epochs is None),
      "training.num_steps and training.total_epochs: give exactly one.",
    )
    check(
      self.warmup_steps is None or self.warmup_epochs is None,
      "training.warmup_steps and training.warmup_epochs: give at most one.",
    )

  def steps(self, num_examples: int) -> int:
    """Steps of the whole run, for a training set of that size."""
    if self.num_steps is not None:
      return self.num_steps
    steps = round(self.total_epochs * num_examples / self.batch_size)
    name = f"training.total_epochs is {self.total_epochs:g}"
    check(
      steps >= 1,
      f"{name}, which is less than one step of {self.batch_size} images out of"
      f" {num_examples}; raise it, or set training.num_steps instead.",
    )
    check(
      steps < 2**31,
      f"{name}, which is {steps} steps of {self.batch_size} images out of"
      f" {num_examples}; expected fewer than 2^31: lower it.",
    )
    return steps

  def warmup(self, num_examples: int) -> float:
    """Steps of warm-up, for a training set of that size."""
    if self.warmup_epochs is not None:
      return self.warmup_epochs * num_examples / self.batch_size
    return float(self.warmup_steps or 0)

  def peak_learning_rate(self) -> float:
    """Learning rate after the warm-up."""
    if self.learning_rate is not None:
      return self.learning_rate
    return self.base_learning_rate * self.batch_size / 256


@schema.config
class EvaluationConfig:
  """What scores a run while it trains, on images of the averaged weights.

  Attributes:
    scores: names with commas between them, as `marjax evaluate` has them.
    num_images: few, for numbers to be compared within one run only.
    network, weights: that sees the images, and its file; "" for
      NETWORK.safetensors in the current folder.
    against: statistics or images to compare with; "" for the run's own data.
    batch_size: images per device call; None chooses.
  """

  scores: str = "fid"
  num_images: Positive = 1000
  network: str = "mobilenet"
  weights: str = ""
  against: str = ""
  batch_size: Positive | None = None


Devices = Annotated[int, Range(-1, 2**20)]


@schema.config
class MeshConfig:
  """How the devices are shared out.

  Attributes:
    preset: "dp" holds the whole state on every device and splits batches;
      "fsdp" also splits the state over all devices of a slice; "fsdp+tensor"
      splits each layer over `tensor` neighbours as well. "custom" takes the
      three sizes as they are.
    data, fsdp, tensor: devices along each axis; one may be -1, all that are
      left.
  """

  preset: Literal["custom", "dp", "fsdp", "fsdp+tensor"] = "custom"
  data: Devices = -1
  fsdp: Devices = 1
  tensor: Devices = 1

  def __post_init__(self):
    sizes = (self.data, self.fsdp, self.tensor)
    check(
      all(size == -1 or size >= 1 for size in sizes) and sizes.count(-1) <= 1,
      f"mesh has data={self.data}, fsdp={self.fsdp}, tensor={self.tensor};"
      " expected sizes of 1 or more, and at most one -1.",
    )
    has_tensor = self.preset == "fsdp+tensor"
    check(
      self.preset == "custom"
      or (
        (self.data, self.fsdp) == (-1, 1) and (self.tensor > 1) == has_tensor
      ),
      f"mesh.preset is {self.preset!r}, with data={self.data},"
      f" fsdp={self.fsdp}, tensor={self.tensor}; a preset sets data and fsdp"
      " itself: expected mesh.data=-1, mesh.fsdp=1 and mesh.tensor above 1 with"
      ' "fsdp+tensor" only, or preset "custom".',
    )


@schema.config
class Experiment:
  """One training run, and the checkpoint it makes."""

  name: str
  codec: Codec
  model: ModelConfig
  data: DataConfig
  training: TrainingConfig
  sampling: Settings = field(default_factory=Settings)
  mesh: MeshConfig = field(default_factory=MeshConfig)
  seed: Seed = 0
  evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

  def __post_init__(self):
    codec, backbone = self.codec, self.model.backbone
    own, wanted = (
      f"{part.num_tokens} tokens that are {token_words(part)}"
      for part in (codec, backbone)
    )
    check(
      own == wanted,
      f"the {codec.kind} codec makes {own} but model.backbone expects {wanted};"
      " make them equal: codes go with a backbone's num_codes and a categorical"
      " head, floats with token_dim and other heads.",
    )
    code_dim = getattr(codec, "code_dim", 0)
    check(
      backbone.code_dim in (0, code_dim),
      f"model.backbone.code_dim is {backbone.code_dim}; expected 0, or the"
      f" {code_dim} numbers of the codec's code vectors.",
    )
    check(
      (self.data.image_size, self.data.channels)
      == (codec.image_size, codec.channels),
      f"data has {self.data.image_size} pixels and {self.data.channels}"
      f" channels, the codec {codec.image_size} and {codec.channels}; make"
      " them equal.",
    )
    num_classes = getattr(backbone.condition, "num_classes", 0)
    check(
      num_classes in (0, self.data.num_classes),
      f"model.backbone.condition.num_classes is {num_classes}; expected 0 or"
      f" data.num_classes = {self.data.num_classes}.",
    )
    check(
      self.data.is_cached == codec.is_cached,
      f"data.source is {self.data.source!r} and codec.kind {codec.kind!r};"
      " training with an autoencoder takes latents that were cached: make them"
      " with marjax cache-latents, and set data.source to 'latents'.",
    )
    training = self.training
    parts = backbone.batch_multiple * training.num_microbatches
    check(
      training.batch_size % parts == 0,
      f"training.batch_size is {training.batch_size}; expected a multiple of"
      f" {parts} = {backbone.batch_multiple} of the backbone (strata of its"
      " masks) × training.num_microbatches.",
    )
    self.sampling.check_fits(self.model, "sampling")
