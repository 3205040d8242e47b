"""Photographs of 64² in 4 × 4 patches, as in the paper's experiment on pixels.

Data      an image folder, FOLDER/{train,val}/CLASS/*.jpg; Tiny-ImageNet has 200
          classes of 500, and codec.mean is that of 40 of them
Tokens    256 patches of 4 × 4 raw pixels
Command   marjax train --config configs/photos64.py:flow \
            --workdir out/photos64 --config.data.data_dir=FOLDER \
            --config.data.num_classes=N \
            --config.model.backbone.condition.num_classes=N
Cost      of 40 classes, 256 epochs: 12 minutes of one H200
Expected  of 40 classes, 2 000 images at guidance 14: loss 0.154, KID 0.066,
          fd_mobilenet 74.7 and label accuracy 0.832, where 2 000 real test
          images have 0.000, 32.3 and 0.699. The paper has an FID of 2.93, of
          all of ImageNet; see docs/scoreboard.md
Variants  :laptop      a few seconds, on made-up images
          :regression  :flow, and the cells of the paper's table 1, as of
          configs/cifar10.py; codes are fitted likewise, to out/photos64_codes
"""

from ml_collections import ConfigDict

from configs import cells, cifar10

NUM_CLASSES = 40


def get_config(variant: str = "") -> ConfigDict:
  """The run above, or a variant of it."""
  name, _ = cells.parts(variant, cifar10.KNOWN, "configs/photos64.py")
  config = cifar10.get_config(variant)
  config.name = config.name.replace("cifar10", "photos64")
  if "autoencoder" in config.data:
    config.data.autoencoder = "out/photos64_codes"
  if config.data.source == "synthetic":
    return config
  backbone = config.model.backbone
  with config.unlocked():
    config.data.update(data_dir="photos64", test_split="val")
    config.data.update(image_size=64, num_classes=NUM_CLASSES)
    config.codec.update(image_size=64, mean=-0.11, std=1.3)
    # :flow's longer training would see each of 20 000 images 614 times.
    config.training.num_steps = 10_000
    backbone.update(num_tokens=256)
    backbone.condition.num_classes = NUM_CLASSES
    # Cells that draw one token a step still do; all others need fewer steps.
    is_whole = config.sampling.num_ar_steps == 64 and name in cells.NAMES
    config.sampling.num_ar_steps = 256 if is_whole else 64
  return config
