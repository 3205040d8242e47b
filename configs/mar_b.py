"""MAR-B on ImageNet 256², the published recipe: 207.9 M parameters, 800 epochs.

Command   marjax train --config configs/mar_b.py --workdir OUT \
            --config.data.data_dir=CACHE
Before    marjax preflight --config configs/mar_b.py --topology v5e:16x16
Cost      450 EFLOP; 1 590 v5e chip-hours if 40 % of their peak is reached
Expected  FID 2.31, IS 281.7 at guidance 2.9 (published; not reproduced here)
Variants  :laptop    made small, on made-up images
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config(variant: str = "") -> ConfigDict:
  """The run above, or `laptop`."""
  config = imagenet.recipe("mar_b", 768, 12, 12, (6, 1024), 2.9)
  return imagenet.variant_of(config, variant)
