"""Compiled programs, kept from one command to the next.

XLA's programs go to ~/.cache/marjax/programs, one folder for each machine, for
processors differ; or below $MARJAX_PROGRAMS; or nowhere, if that is empty. A
folder that jax was told of, by JAX_COMPILATION_CACHE_DIR, wins. They may be
deleted at any time.
"""

import os
import platform
from pathlib import Path


def keep_programs() -> None:
  """Tells jax where; to be called before anything is compiled."""
  import jax

  chosen = os.environ.get("MARJAX_PROGRAMS", "~/.cache/marjax/programs")
  if jax.config.jax_compilation_cache_dir or not chosen:
    return
  folder = Path(chosen).expanduser() / platform.node()
  jax.config.update("jax_compilation_cache_dir", str(folder))
