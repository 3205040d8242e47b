"""The paper's claims, as what `experiments.studies` trains and draws for each.

A study is a sentence, cells, which are trained, and the settings and orders
that they are drawn with. Studies share cells.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

AS_CODES = "as codes"
"""Stands for the cell's own order where images are then made of codes."""

Changes = dict[str, Any]
"""Of settings, by name."""


class Cell(NamedTuple):
  """What is trained: a variant, fields of it that are changed, and a seed."""

  variant: str = "mar"
  changes: tuple[str, ...] = ()
  seed: int = 0

  @property
  def name(self) -> str:
    """Of its folder, and of its rows."""
    changed = [
      c.removeprefix("config.").removeprefix("model.").replace("=", "_")
      for c in self.changes
    ]
    return "-".join([self.variant, *changed, str(self.seed)])

  @property
  def has_codes(self) -> bool:
    """Whether its tokens are codes."""
    return self.variant.endswith("_ce")


class Draw(NamedTuple):
  """How images are drawn: settings that differ from the config's, an order."""

  changes: Changes
  order: str = "own"


class Study(NamedTuple):
  """A claim, and what it takes to try it.

  Attributes:
    claim: a sentence. cells: trained. draws: of each of them.
    axis, series: keys of a row or its settings: what a picture's points lie
      over, and what its lines are of, which may be several, "KEY, KEY".
    is_timed: whether points lie over the time of an image, where all have one.
    over: scores, by those that a picture draws over them, not over the axis.
  """

  claim: str
  cells: Sequence[Cell]
  draws: Sequence[Draw] = (Draw({}),)
  axis: str = "cell"
  series: str = "cell"
  is_timed: bool = False
  over: Mapping[str, str] = MappingProxyType({})

  @property
  def is_as_codes(self) -> bool:
    """Whether its images, all or none, are made of codes before."""
    return self.draws[0].order == AS_CODES


def _with(field: str, *values: Any) -> list[Cell]:
  return [Cell(changes=(f"config.{field}={value}",)) for value in values]


def _draws(name: str, *values: Any, **others: Any) -> list[Draw]:
  return [Draw({name: value} | others) for value in values]


def _reverse(
  sampler: str, start: int, spacing: str, *counts: int
) -> list[Draw]:
  head = {"sampler": sampler, "start": start, "spacing": spacing}
  return [Draw({"head": {**head, "num_steps": n}}) for n in counts]


def _with_either_loss(*changes: str) -> list[Cell]:
  """Cells of the paper's table 1 and `guided`; changes: of those of codes."""
  trainings = {"ar_raster": 1, "ar_random": 2, "mar": 2, "guided": 1}
  return [
    cell
    for name, count in trainings.items()
    for seed in range(count)
    for cell in (Cell(name, (), seed), Cell(f"{name}_ce", changes, seed))
  ]


MASKED, CODES = Cell(), Cell("mar_ce")
# The transformer that cells with cross-entropy have in common with the others
# is 10 million parameters; this one has what the diffusion MLP adds to those.
WIDER = ("config.model.backbone.width=352",)
GUIDED = (*_draws("guidance_scale", 1.0, 3.0), Draw({}))  # 9
TEMPERATURES = (0.9, 0.95, 1.0, 1.02, 1.05)
# What adds no noise has no temperature.
NOISY = {
  "sampler": "ancestral",
  "num_steps": 100,
  "start": 950,
  "spacing": "quadratic",
}
YOUNG = "config.training.num_steps=1500"

# Of the recipe: what was tried before it was what it is now.
SHORT = "config.training.num_steps=3000"
TRIAL = "config.training.num_steps=4000"
RATE = "config.training.learning_rate="
ADAMW = "config.training.optimizer=adamw"
BEFORE = (SHORT, ADAMW, "config.model.head.repeats=4")
BEFORE += ("config.model.backbone.masking.num_strata=2",)
SLOW = (*BEFORE, f"{RATE}0.0008")
WIDE = (SHORT, ADAMW, "config.model.backbone.masking.num_strata=2")
WIDE += ("config.model.backbone.width=384", "config.model.backbone.num_heads=6")
BROAD = ("config.model.backbone.masking.lowest=0.02",)
BROAD += ("config.model.backbone.masking.std=0.5",)
DROPOUT = tuple(
  f"config.model.backbone.{kind}_dropout=0.1"
  for kind in ("attention", "projection")
)
# Of the flow head: times as they were.
TIMES = tuple(f"config.model.head.time_{m}" for m in ("mean=0.0", "std=1.0"))
HALVES = ("config.training.batch_size=256", "config.training.num_steps=8000")
HALVES += ("config.training.warmup_steps=1000",)

STUDIES: dict[str, Study] = {
  "table1": Study(
    "Any order and attention can draw continuous tokens; bidirectional"
    " attention beats causal, and random orders beat raster order.",
    _with_either_loss(),
    GUIDED,
    series="guidance_scale",
  ),
  "losses": Study(
    "Diffusion Loss beats cross-entropy in every order and attention.",
    _with_either_loss(*WIDER),
    [draw._replace(order=AS_CODES) for draw in GUIDED],
    series="guidance_scale",
  ),
  "one_token": Study(
    "Several tokens a step cost little.",
    [
      *(Cell(name, seed=seed) for name in ("mar", "mar_ce") for seed in (0, 1)),
      Cell("guided_ce"),
      Cell("guided"),
    ],
    [
      draw
      for steps in (32, 64)
      for draw in _draws("guidance_scale", 1.0, 9.0, num_ar_steps=steps)
    ],
    series="num_ar_steps, guidance_scale",
  ),
  "recipe": Study(
    "What the masked model gains by, in short trainings.",
    [
      *(
        Cell(changes=(*SLOW, *DROPOUT, f"config.codec.std={std}"))
        for std in (0.5, 1.0, 1.5)
      ),
      Cell(changes=SLOW),
      Cell(changes=(*SLOW, *BROAD)),
      *(Cell(changes=(*WIDE, f"{RATE}{r}")) for r in (0.0008, 0.0016, 0.0032)),
      Cell(changes=BEFORE),
      Cell(changes=(TRIAL, ADAMW)),
      Cell(changes=(*HALVES, ADAMW, f"{RATE}0.0023")),
      *(Cell(changes=(TRIAL, f"{RATE}{rate}")) for rate in (0.0016, 0.01)),
      Cell(changes=(TRIAL,)),
      Cell("flow", (TRIAL, *TIMES, ADAMW)),
      Cell("flow", (TRIAL, *TIMES, f"{RATE}0.0016")),
      Cell("flow", (*HALVES, *TIMES, f"{RATE}0.0016")),
      Cell("flow", (TRIAL, *TIMES)),
      Cell("flow", (TRIAL, "config.model.head.time_mean=1.2")),
      Cell("flow", (TRIAL,)),
    ],
  ),
  "head_size": Study(
    "A wider head is better, and 1024 is enough; depth matters less.",
    [
      *_with("model.head.width", 256),
      MASKED,  # 512, 6
      *_with("model.head.width", 1024, 1536),
      *_with("model.head.depth", 3, 12),
    ],
  ),
  "diffusion_steps": Study(
    "100 steps are enough.",
    [MASKED],
    [
      *_reverse("ancestral", 999, "even", 10, 25, 50, 100, 250, 1000),
      *_reverse("ancestral", 950, "even", 10, 25, 50, 100, 250, 950),
      *_reverse("ancestral", 950, "quadratic", 10, 25, 50, 100, 250),
      *_reverse("dpm-solver++", 980, "quadratic", 10, 25, 50),
    ],
    "num_diffusion_steps",
    "sampler, spacing, start_timestep",
  ),
  "temperature": Study(
    "Temperature trades diversity for fidelity, and so does guidance.",
    [MASKED],
    [
      draw
      for scale in (1.0, 3.0, 6.0, 9.0)
      for draw in _draws(
        "temperature",
        *TEMPERATURES,
        guidance_scale=scale,
        head=NOISY,
      )
    ],
    "temperature",
    "guidance_scale",
    over={"recall": "precision"},
  ),
  "speed": Study(
    "More AR steps are better and slower; masked models need few.",
    [MASKED, Cell("ar_random"), Cell("guided")],
    _draws("num_ar_steps", 4, 8, 16, 32, 64),
    "num_ar_steps",
    is_timed=True,
  ),
  "orders": Study(
    "Random orders are what a masked model was trained for.",
    [MASKED],
    [Draw({}, order) for order in ("random", "raster", "checkerboard")],
    "order",
  ),
  "mask_ratio": Study(
    "Masks from 0.7 on, as published, or from 0.3.",
    [MASKED, *_with("model.backbone.masking.lowest", 0.7)],
  ),
  "control_l2": Study(
    "Without a distribution of each token, images are means.",
    [MASKED, Cell("regression")],
    [Draw({}), Draw({"guidance_scale": 1.0})],
    series="guidance_scale",
  ),
  "start": Study(
    "The reverse process is to start below the first timestep, the more so the"
    " younger a model is.",
    [MASKED, Cell(changes=(YOUNG,))],
    [
      draw
      for start in (999, 980, 950)
      for draw in _reverse("ancestral", start, "even", 100)
    ],
    "start_timestep",
  ),
}
