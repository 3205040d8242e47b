"""Compiled programs that belong to whoever runs them, and are not too many.

1. A program is a function with its static arguments, for arrays of certain
   shapes on a mesh. `Programs` compiles it when it is first asked for.
2. Each is traced as a function of its own: jax keeps what it traced for as long
   as the function lives, so a program that is dropped leaves nothing behind.
3. The `MOST` used last are kept, or as many as one request needs; all go with
   their owner.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from marjax.parallel.compiler import compiler_options

MOST = 64
"""Programs that are kept."""

SPARE = 8
"""Programs of a request beside its largest group of them."""


@dataclass(frozen=True)
class Program:
  """What to compile.

  Attributes:
    function: called with `static`, which can be hashed, then with arrays.
    static: the first arguments. args: arrays, or anything with their shapes.
    donated: which of `args` may be overwritten.
  """

  function: Callable
  static: tuple
  args: tuple
  donated: tuple[int, ...] = ()

  def lowered(self) -> Any:
    """Traced for its arguments, not compiled; see `jax.stages.Lowered`."""

    def program(*args):
      return self.function(*self.static, *args)

    program.__name__ = self.function.__name__
    shapes = jax.tree.map(_abstract, self.args)
    return jax.jit(program, donate_argnums=self.donated).lower(*shapes)

  def key(self, mesh: Mesh) -> tuple:
    """Equal for equal programs."""
    leaves, structure = jax.tree.flatten(jax.tree.map(_abstract, self.args))
    context = (
      jax.config.jax_default_matmul_precision,
      jax.config.jax_enable_x64,
      jax.config.jax_threefry_partitionable,
    )
    traced = (self.function, self.static, tuple(leaves), structure)
    return (*traced, self.donated, mesh, context)


class Programs:
  """The compiled programs of one owner; see the module docstring."""

  def __init__(self):
    self._compiled, self._most = {}, MOST

  def __len__(self) -> int:
    return len(self._compiled)

  def __repr__(self) -> str:
    return f"{len(self)} compiled programs"

  def of(self, mesh: Mesh, programs: Sequence[Program]) -> list[Callable]:
    """All of these, to be called with their arrays.

    Those that are new are compiled at the same time: XLA works on each with one
    core, most of the time.
    """
    wanted = {program.key(mesh): program for program in programs}
    ready = {key: self._compiled.get(key) for key in wanted}
    missing = [key for key, program in ready.items() if program is None]
    if missing:
      lowered = [wanted[key].lowered() for key in missing]
      options = compiler_options(mesh)
      with ThreadPoolExecutor() as pool:
        compiled = pool.map(lambda one: one.compile(options), lowered)
        ready.update(zip(missing, compiled, strict=True))
    for key in ready:  # what was used last stands last
      self._compiled.pop(key, None)
    self._compiled.update(ready)
    self._most = max(self._most, len(ready) + SPARE)
    for key in list(self._compiled)[: -self._most]:
      self._compiled.pop(key, None)
    return list(ready.values())

  def run(self, mesh: Mesh, function: Callable, static: tuple, *args) -> Any:
    """What the function gives for these arguments."""
    return self.of(mesh, [Program(function, static, args)])[0](*args)


def _abstract(array):
  """Shape, dtype and, unless it may go anywhere, place of an array."""
  is_placed = getattr(array, "committed", True)
  place = getattr(array, "sharding", None) if is_placed else None
  dtype = array.dtype
  if isinstance(array, np.ndarray):
    # numpy's integers have 64 bits, of which jax takes 32.
    dtype = jax.dtypes.canonicalize_dtype(dtype)
  return jax.ShapeDtypeStruct(array.shape, dtype, sharding=place)
