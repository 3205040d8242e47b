"""Table 1 of the paper on ImageNet 256², size L, 400 epochs: ten cells.

Command   marjax train --config configs/table1.py:mar --workdir OUT \
            --config.data.data_dir=CACHE
Before    marjax preflight --config configs/table1.py:mar --topology v5e:16x16
Cost      per cell below: EFLOP; v5e chip-hours if 40 % of their peak is reached
Expected  FID without and with guidance (published, not reproduced here; none
          is published for guided)
Variants  :laptop  the default, :mar, made small, on made-up images

                            million             chip-
  Diffusion Loss            parameters   EFLOP  hours   FID
  :ar_raster     256 steps       425.2     391  1 380   19.23    4.69
  :ar_random     256             425.2     391  1 380   13.07    4.07
  :mar_one       256             426.4     341  1 200    3.43    1.84
  :mar            64             426.4     341  1 200    3.50    1.98
  :guided         64             393.7     367  1 290
  Cross-entropy
  :ar_raster_ce  256             438.5     343  1 210   19.58    4.92
  :ar_random_ce  256             438.5     343  1 210   16.22    4.36
  :mar_one_ce    256             439.6     296  1 040    8.75    3.50
  :mar_ce         64             439.6     296  1 040    8.79    3.69
  :guided_ce      64             407.0     319  1 120

ar_* are causal, in raster or in random order; mar* are bidirectional, and
mar_one is mar drawn one token a step: one training is enough for both. guided,
of arXiv 2503.10568, is no row of the paper's.

Diffusion Loss is of latents of KL-16, at a constant learning rate after the
warm-up; cross-entropy is of codes of VQ-16, with a cosine. Each has its CACHE,
by --autoencoder kl16, or of a VQ-16 that `marjax convert` made a release of.
The paper chose guidance for each cell, and temperature, and does not say which:
3 is that of mar_l_default.

Each shrinks as configs/table1.py:ar_raster,laptop does; one of codes needs

  marjax fit-codebook --config configs/table1.py:mar_ce,laptop \
    --out out/table1_codes
"""

from ml_collections import ConfigDict

from configs import cells, imagenet


def get_config(variant: str = "") -> ConfigDict:
  """The run of a cell; "" is that of `mar`, the paper's default."""
  cell, is_laptop = cells.parts(variant, cells.NAMES, "configs/table1.py")
  name = f"table1_{cell}" if cell else "table1"
  config = imagenet.recipe(name, 1024, 16, 16, (3, 1024), guidance=3.0)
  config.training.total_epochs = 400.0
  cells.set_cell(config, cell or "mar", 16384, num_ar_steps=(256, 64))
  if cell.endswith("_ce"):
    config.codec.kind = "vq"
    config.model.head.dtype = "bfloat16"
    config.training.schedule = "cosine"
  return imagenet.variant_of(config, "laptop" if is_laptop else "")
