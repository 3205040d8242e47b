"""Play with a checkpoint on a page in the browser.

The page draws, reveals, edits what is painted on a picture, and says the same
in Python. It is served to this machine alone, until Ctrl-C.
"""

import argparse

from marjax.cli import flags
from marjax.ticks import ticking

FLAGS = """
--checkpoint FOLDER, required
  a released checkpoint, a work directory, or a published name
--host ADDRESS, default 127.0.0.1
  who may connect: this machine, or with 0.0.0.0 all who reach it, unasked
--port N, default 7860
  where to serve the page
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax app`."""
  flags.add(parser, FLAGS)


def run(args: argparse.Namespace) -> None:
  """Flags → pipeline → a page, until it is interrupted."""
  import tempfile
  import threading

  check_free(args.host, args.port)
  print("marjax: loading ...", flush=True)
  with tempfile.TemporaryDirectory(prefix="marjax-app-") as folder:
    with ticking("starting the page"):
      import marjax
      from marjax.app import page
      from marjax.cli.main import sentence

      pipe = marjax.load(args.checkpoint)
      pipe.settings()  # an autoencoder alone has none, and says so
      asked = page.Page(pipe, args.checkpoint, folder, sentence)
      blocks = page.serve(asked, args.host, args.port)
    print(f"http://{args.host}:{args.port} (Ctrl-C ends it)", flush=True)
    try:
      threading.Event().wait()
    finally:
      blocks.close(verbose=False)


def check_free(host: str, port: int) -> None:
  """Refuses a port where nothing can be served.

  Raises:
    ValueError: no port, or no address of this machine. OSError: it is taken.
  """
  import socket

  if not 1 <= port < 2**16:
    raise ValueError(f"--port is {port}; expected 1 to 65535.")
  try:
    with socket.socket() as trial:
      trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      trial.bind((host, port))
  except OSError as error:
    raise OSError(
      f"http://{host}:{port} cannot be served ({error.strerror.lower()});"
      " expected a free port and an address of this machine: pass another"
      " --port."
    ) from None
