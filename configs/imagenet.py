"""The published recipe on ImageNet 256², which configs/mar_*.py share.

Data      ImageNet, 1 281 167 images, as latents of KL-16 cached on local disks:
          marjax cache-latents --source tfds --name imagenet2012 \
            --autoencoder kl16 --out CACHE
Tokens    256 of 16 numbers
Training  batch 2048, AdamW, 8e-4 after 100 epochs of warm-up, EMA 0.9999
Memory    state split over 16 chips (fsdp), blocks recomputed, bfloat16 matmuls;
          --config.mesh.fsdp=8 and the like for fewer chips

Not to be trained itself: it has no size.
"""

from ml_collections import ConfigDict


def recipe(
  name: str,
  width: int,
  depth: int,
  num_heads: int,
  head: tuple[int, int],
  guidance: float,
) -> ConfigDict:
  """The recipe for `depth` blocks each way and a head of (depth, width)."""
  config = ConfigDict()
  config.name, config.seed = name, 0
  config.data = {"source": "latents", "data_dir": "", "flip": True}
  config.data.update(image_size=256, num_classes=1000, num_threads=8)
  config.codec = {"kind": "kl", "image_size": 256}
  config.model = {
    "backbone": {"width": width, "num_heads": num_heads, "dtype": "bfloat16"},
    "head": {"kind": "diffusion", "token_dim": 16, "dtype": "bfloat16"},
  }
  config.model.backbone.update(encoder_depth=depth, decoder_depth=depth)
  config.model.backbone.condition = {"num_classes": 1000}
  # 4 waste 2 % less, and compile far longer.
  config.model.backbone.masking = {"num_strata": 2}
  config.model.head.update(depth=head[0], width=head[1])
  config.training = {
    "batch_size": 2048,
    "num_microbatches": 1,
    "total_epochs": 800.0,
    "warmup_epochs": 100.0,
    "checkpoint_every": 5000,
    "sample_every": 0,
  }
  config.sampling = {"num_ar_steps": 64}
  config.sampling.head = {"kind": "diffusion", "num_steps": 100}
  config.sampling.guidance_scale = guidance
  # Over all of a pod a shard has a few rows, which XLA then gathers by adding
  # up zeros, at twice the traffic.
  config.mesh = {"preset": "custom", "data": -1, "fsdp": 16}
  return config


def variant_of(config: ConfigDict, variant: str) -> ConfigDict:
  """The config itself, or `laptop`: the same run on made-up 16² images."""
  if variant == "laptop":
    _shrink(config)
  elif variant:
    raise ValueError(
      f"config {config.name} has no variant {variant!r}; expected laptop."
    )
  return config.lock()


def _shrink(config: ConfigDict) -> None:
  """Makes a run one of seconds, that needs no data."""
  backbone, head = config.model.backbone, config.model.head
  is_of_codes = "num_codes" in backbone
  is_causal = backbone.get("kind") == "causal"
  config.data = {"source": "synthetic", "image_size": 16, "num_classes": 4}
  config.codec = {"kind": "pixels", "image_size": 16, "patch": 2}
  backbone.update(num_tokens=64, width=32, num_heads=4)
  backbone.condition.num_classes = 4
  for field in [field for field in backbone if field.endswith("depth")]:
    backbone[field] = 1
  if is_of_codes:
    config.data.autoencoder = "out/table1_codes"
    config.codec.update(kind="codebook", num_codes=16)
    backbone.num_codes = head.num_codes = 16
  else:
    backbone.token_dim = head.token_dim = 12
    head.update(width=32, depth=1)
    config.sampling.head.num_steps = 4
  del config.training["total_epochs"], config.training["warmup_epochs"]
  config.training.update(num_steps=4, warmup_steps=2, batch_size=32)
  config.training.update(checkpoint_every=2, sample_every=4)
  config.sampling.guidance_scale = 2.0
  config.sampling.num_ar_steps = 64 if is_causal else 4
  # Compiling is most of so short a run, and each of these adds to it.
  config.sampling.num_buckets = 1
  config.mesh = {"preset": "fsdp"}
