"""Emoji of a font as a folder of one's own pictures, see docs/own_pictures.md.

    apt-get install fonts-noto-color-emoji; pip install fonttools
    python -m experiments.emoji photos

The font has one PNG for each glyph, 136 × 128 pixels. Flags are ligatures of
two letters; what else is taken is told by the names of characters.
"""

import pathlib
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from experiments import programs

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
LETTER_A = 0x1F1E6  # regional indicators, of which two make a flag
WATCHES = ("WATCH", "ALARM CLOCK", "STOPWATCH", "TIMER CLOCK")
WATCHES += ("MANTELPIECE CLOCK",)
FACES = (0x2639, 0x263A, *range(0x1F600, 0x1F645), *range(0x1F910, 0x1F918))
FACES += (*range(0x1F920, 0x1F930), *range(0x1F970, 0x1F97B), 0x1F9D0)
FACES += (*range(0x1FAE0, 0x1FAE5),)
# Not round, or of other things: the robot, a facepalm, a ninja, a couple, an
# anatomical heart.
LEFT_OUT = (0x1F916, 0x1F926, 0x1F977, 0x1F491, 0x1FAC0)


def class_of(code: int) -> str | None:
  """The folder of a character, if it is to be in one."""
  name = unicodedata.name(chr(code), "")
  if code in LEFT_OUT:
    return None
  if "CLOCK FACE" in name or name in WATCHES:
    return "clocks"
  if code in FACES and "HAND" not in name and "CAT" not in name:
    return "round faces"
  is_heart = "HEART" in name and "FACE" not in name and "EYES" not in name
  return "hearts" if is_heart else None


def pictures(path: str) -> Iterator[tuple[str, str, bytes]]:
  """(class, name, PNG) of every picture of the font."""
  from fontTools.ttLib import TTFont

  if not pathlib.Path(path).exists():
    raise FileNotFoundError(
      f"{path} does not exist; expected the font: apt-get install"
      " fonts-noto-color-emoji, or say where it is with --font."
    )
  font = TTFont(path)
  bitmaps, glyphs = font["CBDT"].strikeData[0], font.getBestCmap()
  letters = {glyphs[LETTER_A + i]: chr(ord("a") + i) for i in range(26)}
  for lookup in font["GSUB"].table.LookupList.Lookup:
    for table in lookup.SubTable:
      table = getattr(table, "ExtSubTable", table)
      for first, ligatures in getattr(table, "ligatures", {}).items():
        for one in ligatures:
          country = [letters.get(glyph) for glyph in (first, *one.Component)]
          if len(country) == 2 and all(country):
            yield "flags", "".join(country), bitmaps[one.LigGlyph].imageData
  for code, glyph in glyphs.items():
    if (kind := class_of(code)) and glyph in bitmaps:
      yield kind, f"{code:x}", bitmaps[glyph].imageData


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Writes them, and says how many there are."""
  parser = programs.parser(__spec__, __doc__)
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("--font", default=FONT)
  args = parser.parse_args(argv)
  counts = Counter()
  for kind, name, png in pictures(args.font):
    (args.out / kind).mkdir(parents=True, exist_ok=True)
    (args.out / kind / f"{name}.png").write_bytes(png)
    counts[kind] += 1
  print(", ".join(f"{count} {kind}" for kind, count in counts.items()))


if __name__ == "__main__":
  sys.exit(main())
