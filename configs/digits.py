"""Handwritten digits: the whole of MAR in minutes, on a laptop.

Data      scikit-learn's 1 797 digits, 8 × 8 grey pixels, 10 classes; no network
Tokens    16 patches of 2 × 2 raw pixels
Command   marjax train --config configs/digits.py --workdir out/digits
          marjax evaluate --checkpoint out/digits --out out/digits
Cost      at most 6 minutes of training on 2 CPU cores
Expected  label_accuracy 0.98, frechet_ratio 1.9, near_copy_rate below 0.01
Variants  :laptop      a few seconds, to see that everything runs
          :regression  the control: plain L2 loss instead of Diffusion Loss
          :flow        flow matching, 25 evaluations of the head, not 50
          :muon        by Muon, in half the steps: frechet_ratio 1.64 ± 0.17
                       over three seeds; what `make demo` runs

The grid of the paper's table 1, at temperature 1 (`experiments.table1`):

  Diffusion Loss  cross-entropy               tokens a step
  :ar_raster      :ar_raster_ce  causal              1
  :ar_random      :ar_random_ce  causal              1
  :mar_one        :mar_one_ce    bidirectional       1
  :mar            :mar_ce        bidirectional       2, 8 steps by a cosine
  :guided         :guided_ce     a causal memory     2, that of arXiv 2503.10568

Steps, images and learning rates are the same in all; a transformer is that of
its neighbour. Parameters of ar_*, mar*, guided: with Diffusion Loss 545 224,
550 024 and 537 096, most of them in the head's MLP; with cross-entropy 237 056,
241 856 and 228 928. Either three are within 3 % of their middle.

A token of the right column is one of 256 codes: the error is 1.5 % of the
variance of pixels, with 128 codes 2.5 %, with 64 3.9 %. Fit them first:

  marjax fit-codebook --config configs/digits.py:mar_ce --out out/digits_codes
  marjax train --config configs/digits.py:mar_ce --workdir out/mar_ce

Each shrinks as well: configs/digits.py:mar_ce,laptop
"""

from ml_collections import ConfigDict

from configs import cells

CODES = 256


def get_config(variant: str = "") -> ConfigDict:
  """The run above, or a variant of it."""
  config = ConfigDict()
  config.name = "digits"
  config.seed = 0
  config.data = {
    "source": "digits",
    "image_size": 8,
    "channels": 1,
    "num_classes": 10,
    "num_threads": 0,
  }
  config.codec = {
    "image_size": 8,
    "channels": 1,
    "patch": 2,
    "mean": -0.39,  # of the training pixels, in [-1, 1]
    "std": 0.75,
  }
  config.model = {
    "backbone": {
      "num_tokens": 16,
      "token_dim": 4,
      "width": 64,
      "encoder_depth": 2,
      "decoder_depth": 2,
      "num_heads": 4,
      "num_buffer": 4,
      "condition": {"num_classes": 10},
      "attention_dropout": 0.0,
      "projection_dropout": 0.0,
      "remat": "none",
      # The published ratios start at 0.7, so at most 4 of 16 tokens are known
      # in training while generation goes on to 15. Train on those, too.
      "masking": {"num_strata": 2, "lowest": 0.01, "std": 0.5},
    },
    "head": {
      "kind": "diffusion",
      "token_dim": 4,
      "width": 128,
      "depth": 3,
      "repeats": 2,
    },
  }
  config.training = {
    "batch_size": 64,
    "num_steps": 4200,
    "learning_rate": 2e-3,
    "warmup_steps": 200,
    "schedule": "cosine",
    "ema_rate": 0.999,
    "ema_warmup": True,
    "checkpoint_every": 1000,
    "sample_every": 2100,
  }
  # The first step of the published spacing is ill-conditioned; a head trained
  # this briefly draws far better when the reverse process starts later.
  config.sampling = {
    "num_ar_steps": 16,
    "head": {"kind": "diffusion", "num_steps": 50, "start": 950},
    "guidance_scale": 1.25,
    # A model trained this briefly varies too little; a little more noise mends
    # that (Fréchet ratio 2.02 at temperature 1, 1.93 here).
    "temperature": 1.05,
  }
  config.lock()
  known = ("regression", "flow", "muon", *cells.NAMES)
  name, is_laptop = cells.parts(variant, known, "configs/digits.py")
  if name in cells.NAMES:
    with config.unlocked():
      cells.set_cell(config, name, CODES, num_ar_steps=(16, 8))
      config.sampling.temperature = 1.0
      if name.endswith("_ce"):
        config.data.autoencoder = "out/digits_codes"
        config.codec.update(kind="codebook", num_codes=CODES)
  elif name == "regression":
    config.model.head.kind = "regression"
    config.sampling.head = {"kind": "regression"}
  elif name == "flow":
    config.model.head.kind = "flow"
    config.sampling.head = {"kind": "flow", "num_steps": 25}
  elif name == "muon":
    with config.unlocked():
      config.training.update(optimizer="muon", learning_rate=4e-3)
      config.training.update(num_steps=2100, sample_every=1050)
  if is_laptop:
    _shrink(config)
  return config


def _shrink(config: ConfigDict) -> None:
  """Makes a run one of a few seconds."""
  backbone, head = config.model.backbone, config.model.head
  config.training.update(num_steps=4, batch_size=16, warmup_steps=2)
  config.training.update(checkpoint_every=2, sample_every=2)
  depths = [field for field in backbone if field.endswith("depth")]
  backbone.update(width=32, **dict.fromkeys(depths, 1))
  if head.kind != "categorical":
    head.update(width=32, depth=1)
  if "num_steps" in config.sampling.head:
    config.sampling.head.num_steps = 4
  # Compiling is most of so short a run, and each of these adds to it.
  with config.unlocked():
    config.sampling.num_buckets = 1
  if "masking" in backbone:
    backbone.masking.num_strata = 1
  if backbone.get("kind") != "causal":
    config.sampling.num_ar_steps = 4
