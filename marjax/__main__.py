"""`python -m marjax VERB` is `marjax VERB`.

Ctrl-C while modules are imported is answered as later on: what stands at the
top here, and in `marjax/__init__.py`, takes no time to import.
"""

import sys

from marjax.cli import interrupts


def main() -> int:
  """Runs the command line; returns its exit code, if it was not interrupted."""
  try:
    interrupts.begin()
    from marjax.cli import main as command

    code = command.main()
  except KeyboardInterrupt:
    code = interrupts.answer()
  if code == interrupts.CODE:
    interrupts.end()
  return code


if __name__ == "__main__":
  sys.exit(main())
