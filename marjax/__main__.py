"""`python -m marjax VERB` is `marjax VERB`."""

import sys

from marjax.cli.main import main

if __name__ == "__main__":
  sys.exit(main())
