"""MAR-L with the default head of the ablations, 3 × 1024, 400 epochs.

Command   marjax train --config configs/mar_l_default.py --workdir OUT \
            --config.data.data_dir=CACHE
Before    marjax preflight --config configs/mar_l_default.py --topology v4:4x4x4
Cost      341 EFLOP; 1 200 v5e chip-hours if 40 % of their peak is reached
Expected  FID 1.97 with guidance, 2.85 without (published; not reproduced here)
Variants  :laptop    made small, on made-up images
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config(variant: str = "") -> ConfigDict:
  """The run above, or `laptop`."""
  config = imagenet.recipe("mar_l_default", 1024, 16, 16, (3, 1024), 3.0)
  config.training.total_epochs = 400.0
  return imagenet.variant_of(config, variant)
