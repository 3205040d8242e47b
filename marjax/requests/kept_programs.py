"""Compiled programs, kept from one process to the next.

XLA's programs go to ~/.cache/marjax/programs, one folder for each machine, for
processors differ; or below $MARJAX_PROGRAMS; or nowhere, if that is empty. A
folder that jax was told of, by JAX_COMPILATION_CACHE_DIR, wins. They may be
deleted at any time. jax has one such folder for a process, so what is told it
holds for all programs there, as a variable of the environment would.
"""

import logging
import os
import platform
import tempfile

from marjax import outputs

log = logging.getLogger(__name__)


def keep_programs() -> None:
  """Tells jax where; to be called before anything is compiled.

  Where nothing can be written it says so, and nothing is kept.
  """
  import jax

  chosen = os.environ.get("MARJAX_PROGRAMS", "~/.cache/marjax/programs")
  if jax.config.jax_compilation_cache_dir or not chosen:
    return
  try:
    folder = outputs.local(chosen) / platform.node()
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except (ValueError, OSError) as error:
    log.info(
      "compiled programs are not kept for next time (%s); set"
      " MARJAX_PROGRAMS to a folder that you can write to, or to nothing.",
      error,
    )
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # jax keeps what took a second; an image takes several programs of less.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
