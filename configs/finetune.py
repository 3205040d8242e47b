"""MAR-B, fine-tuned at 256² on a folder of photos, on one GPU.

Data      ROOT/train/CLASS/*.jpg, as latents of KL-16, cached once:
          marjax cache-latents --source folder --data_dir ROOT \
            --autoencoder kl16 --out CACHE
Command   marjax train --config configs/finetune.py --workdir OUT \
            --config.data.data_dir=CACHE --config.data.num_classes=N \
            --config.model.backbone.condition.num_classes=N
Start     `mar-base`, fetched on first use; rows of classes whose names ImageNet
          knows are carried over, the others are new
Before    marjax preflight --config configs/finetune.py --topology h200:1
Cost      11.2 GiB of a GPU (:lora 9.8); on an H200 at best 0.031 s a step, 5
          minutes in all, says preflight; run nowhere
Expected  no score is known: it depends on the photos
Variants  :lora      rank 16 beside attention and head, classes and norms
                     trained, all else frozen
          :laptop    made small, on made-up images, from random weights
"""

from ml_collections import ConfigDict

from configs import cells, imagenet


def get_config(variant: str = "") -> ConfigDict:
  """The run above, or a variant of it."""
  config = imagenet.recipe("finetune", 768, 12, 12, (6, 1024), 2.9)
  config.mesh = {"preset": "dp"}
  config.training = {
    "init_from": "mar-base",
    "batch_size": 64,
    "num_steps": 10_000,
    "learning_rate": 1e-4,
    "warmup_steps": 500,
    "schedule": "cosine",
    "ema_rate": 0.999,
    "checkpoint_every": 1000,
    "sample_every": 1000,
  }
  name, is_laptop = cells.parts(variant, ("lora",), "configs/finetune.py")
  if name == "lora":
    config.training.lora = {"rank": 16}
    config.training.factors = (("*class_embedding*", 1.0), ("*norm*", 1.0))
  if is_laptop and name:
    raise ValueError(
      "config finetune has no variant 'lora,laptop', for adapters need a model"
      " to start from; expected lora or laptop."
    )
  if is_laptop:
    config.training.init_from = ""
    # What it shrinks is counted in epochs.
    config.training.update(total_epochs=0.0, warmup_epochs=0.0)
  return imagenet.variant_of(config, "laptop" if is_laptop else "")
