"""MAR-L on ImageNet 256², the published recipe: 478.3 M parameters, 800 epochs.

Command   marjax train --config configs/mar_l.py --workdir OUT \
            --config.data.data_dir=CACHE
Before    marjax preflight --config configs/mar_l.py --topology v5e:16x16
Cost      987 EFLOP; 3 480 v5e chip-hours if 40 % of their peak is reached
Expected  FID 1.78, IS 296.0 at guidance 3.0 (published; not reproduced here)
Variants  :laptop    made small, on made-up images
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config(variant: str = "") -> ConfigDict:
  """The run above, or `laptop`."""
  config = imagenet.recipe("mar_l", 1024, 16, 16, (8, 1280), 3.0)
  return imagenet.variant_of(config, variant)
