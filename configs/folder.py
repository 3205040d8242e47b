"""One's own pictures: a folder of them is all that it needs.

Data      FOLDER/CLASS/*.png, or FOLDER/*.png without classes, or with splits in
          between; also a .zip or .tar of that, parquet, array_record
Tokens    patches of raw pixels, 8 across on a CPU and 16 on other devices; a
          head of flow matching
Command   marjax train --config configs/folder.py \
            --config.data.data_dir=photos --config.image_size=64 \
            --workdir out/mine
          marjax data photos --image_size=64    to look at them before
Cost      about 20 minutes on an idle CPU, an hour on other devices
Expected  docs/own_pictures.md has a run, its time and its samples
Variants  :laptop      a few seconds, to see that everything runs

What is None here is derived from the pictures and the machine, printed before
the first step as flags that could have been typed, and kept in the work
directory, so that the same command goes on with the same numbers.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
  """The run above, or a variant of it."""
  if variant not in ("", "laptop"):
    raise ValueError(
      f"configs/folder.py has no variant {variant!r}; expected laptop."
    )
  config = ConfigDict()
  config.name, config.seed, config.image_size = "folder", 0, None
  config.data = {"source": "folder", "data_dir": "", "flip": True}
  config.data.update(image_size=None, channels=None, num_classes=None)
  config.data.update(train_split=None, test_split=None, test_share=None)
  config.data.skip_unreadable = True
  config.codec = {"image_size": None, "channels": None, "patch": None}
  config.codec.update(kind="pixels", mean=None, std=None)
  config.model = {"backbone": {"num_tokens": None, "token_dim": None}}
  backbone = config.model.backbone
  backbone.update(width=None, encoder_depth=None, decoder_depth=None)
  backbone.dtype = None
  backbone.update(num_heads=4, num_buffer=4, remat="none")
  backbone.condition = {"num_classes": None}
  backbone.masking = {"num_strata": 2, "lowest": 0.01, "std": 0.5}
  # Flow, because a token of 8 × 8 pixels has 192 numbers, and the errors of a
  # diffusion head's first steps are multiplied by 13: at 64² it drew nothing
  # but patches of wrong colours after 500 steps.
  config.model.head = {"kind": "flow", "token_dim": None, "width": None}
  config.model.head.update(depth=3, repeats=None, dtype=None)
  config.training = {"batch_size": None, "num_steps": None, "log_every": None}
  config.training.update(checkpoint_every=None, sample_every=None)
  # Constant, so that a longer run is the same command with more steps.
  config.training.update(optimizer="muon")
  config.training.update(learning_rate=3e-3, warmup_steps=100)
  config.training.update(ema_rate=0.999, ema_warmup=True)
  config.sampling = {"num_ar_steps": None, "guidance_scale": None}
  config.sampling.head = {"kind": "flow", "num_steps": 25}
  config.sampling.num_buckets = 4
  if variant:
    config.training.update(num_steps=4, warmup_steps=2, checkpoint_every=2)
    config.training.update(sample_every=4)
    backbone.update(width=32, encoder_depth=1, decoder_depth=1)
    config.model.head.update(width=32, depth=1)
    config.sampling.update(num_ar_steps=4, num_buckets=1)
    config.sampling.head.num_steps = 4
  return config.lock()
