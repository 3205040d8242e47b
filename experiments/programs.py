"""What programs run by `python -m` share: their parser, and how errors end."""

import argparse
import functools
import sys
from collections.abc import Callable


def parser(spec, doc: str) -> argparse.ArgumentParser:
  """One for flags; arguments are the module's own `__spec__` and `__doc__`."""
  return argparse.ArgumentParser(
    prog=f"python -m {spec.name}", description=doc.partition("\n")[0]
  )


def program(main: Callable[..., None]) -> Callable[..., int]:
  """`main` with an exit status: 2, and a sentence, after an error to mend."""

  @functools.wraps(main)
  def run(argv=None) -> int:
    try:
      main(argv)
    except (ValueError, OSError) as error:
      name = main.__globals__["__spec__"].name
      print(f"{name}: {error}", file=sys.stderr)
      return 2
    return 0

  return run
