"""The smallest run that has everything: a config for the tests of training.

Data      32 synthetic images, 4 × 4 grey pixels, 2 classes
Tokens    4 patches of 2 × 2 raw pixels
Command   marjax train --config tests/train/tiny.py --workdir FOLDER
Cost      a few milliseconds per step
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
  """The run above; there are no variants."""
  del variant
  config = ConfigDict()
  config.name = "tiny"
  config.data = {
    "source": "synthetic",
    "image_size": 4,
    "channels": 1,
    "num_classes": 2,
    "num_examples": 32,
  }
  config.codec = {"image_size": 4, "channels": 1, "patch": 2}
  config.model = {
    "backbone": {
      "num_tokens": 4,
      "token_dim": 4,
      "width": 8,
      "encoder_depth": 1,
      "decoder_depth": 1,
      "num_heads": 2,
      "num_buffer": 1,
      "condition": {"num_classes": 2},
      "masking": {"num_strata": 1},
    },
    "head": {"kind": "diffusion", "token_dim": 4, "width": 8, "depth": 1},
  }
  config.training = {
    "batch_size": 8,
    "num_steps": 12,
    "learning_rate": 1e-3,
    "log_every": 2,
    "checkpoint_every": 4,
  }
  config.sampling = {"num_ar_steps": 2, "head": {"num_steps": 2}}
  return config.lock()
