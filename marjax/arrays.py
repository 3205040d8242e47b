"""Axis glossary, and the array types used at every boundary.

One letter per axis, the same in types, einsum strings and prose:

    B  images of a batch            L  tokens of an image
    K  known tokens (a prefix, in order space)
    U  tokens to predict            P  slots = buffer slots + tokens
    D  numbers of one token         W  width of the transformer (of z)
    N  heads                        H  numbers of one head
    R  repeats of a token in the loss
    T  diffusion steps              S  autoregressive steps

Order space: the tokens of each image permuted by its generation order, so that
known tokens are a prefix and the tokens to predict come right after it.

    order space   0 1 2 3 | 4 5 | 6 7 8 9 10 11 12 13 14 15
                  known     next  unknown, not yet asked for

What people call a function with is checked here too: `checked` decorates a
public function, and each argument that it names is handed to a check, which
gives back what the function gets, or raises a ValueError of one sentence.
"""

import difflib
import fnmatch
import functools
import inspect
import operator
import os
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from marjax.schema import check, shown

Images = Float[Array, "B height width C"]
Latents = Float[Array, "B rows columns C"]
Tokens = Num[Array, "B L *token"]
Order = Int[Array, "B L"]
Labels = Int[Array, " B"]
Counts = Int[Array, " B"]
ImageIds = Int[Array, " B"]
Conditions = Float[Array, "*batch W"]
TokenRows = Float[Array, "*batch D"]
Timesteps = Int[Array, "*batch"]
Scalar = Float[Array, ""]
RootKey = Key[Array, ""]
ImageKeys = Key[Array, " B"]

Leaf = Any
"""A field of a pytree: an array, or what JAX rebuilds the pytree with."""

NO_LABEL = -1
"""The label that means "no class": the backbone uses its `fake_latent`."""


def token_dtype(num_codes: int) -> np.dtype:
  """int32 for tokens that are codes of a codebook, float32 for all others."""
  return np.dtype(np.int32 if num_codes else np.float32)


def no_gradient(integers):
  """What a backward pass gives for arrays, or trees, of integers."""
  return jax.tree.map(
    lambda array: np.zeros(array.shape, jax.dtypes.float0), integers
  )


def kept(function: Callable) -> Callable:
  """A function of arrays and numbers that computes no answer twice.

  An answer is kept as long as the arrays it was made of are, which have to be
  numpy's and read-only; of others nothing is kept.
  """
  known: dict[tuple, Any] = {}

  @functools.wraps(function)
  def call(*args, **named):
    inputs = (*args, *named.values())
    held = [value for value in inputs if isinstance(value, np.ndarray)]
    if any(array.flags.writeable for array in held):
      return function(*args, **named)
    key = tuple(id(a) if isinstance(a, np.ndarray) else a for a in inputs)
    key = (*key, *named)
    if key not in known:
      known[key] = function(*args, **named)
      for array in held:
        weakref.finalize(array, known.pop, key, None)
    return known[key]

  return call


def check_finite(arrays: PyTree, where: str) -> None:
  """Refuses NaN and infinity, naming the array.

  Args:
    arrays: see `not_finite`. where: whose they are, for the message.

  Raises:
    ValueError: one of them holds a number that is not finite.
  """
  if name := not_finite(arrays):
    raise ValueError(
      f"{where} has NaN or infinity in {name}; expected finite numbers: take"
      " another copy, or one from before training failed."
    )


def not_finite(arrays: PyTree) -> str | None:
  """The name of the first array with NaN or infinity, None if all are finite.

  `arrays`: numpy's or jax's, also spread over devices and processes; integers
  pass.
  """
  leaves = named(arrays)
  # A program for accelerators takes seconds to compile; numpy needs none.
  elsewhere = {n: leaf for n, leaf in leaves.items() if not _is_on_host(leaf)}
  is_finite = jax.device_get(_are_finite(elsewhere)) if elsewhere else {}
  for name, leaf in leaves.items():
    if not is_finite.get(name, name in elsewhere or np.isfinite(leaf).all()):
      return name or "its numbers"
  return None


def _is_on_host(array: Any) -> bool:
  if not isinstance(array, jax.Array):
    return True
  is_cpu = all(device.platform == "cpu" for device in array.devices())
  return is_cpu and array.is_fully_addressable


def named(arrays: PyTree) -> dict[str, Any]:
  """Every array of a tree by its name, such as "head/net/blocks_0"."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
  }


def shapes_of(arrays: PyTree) -> dict[str, tuple[int, ...]]:
  """The shape of every array by its name."""
  return {name: np.shape(leaf) for name, leaf in named(arrays).items()}


def matching(
  patterns: Iterable[str], names: Iterable[str], field: str
) -> list[str]:
  """The names that some pattern matches, in their order.

  Args:
    patterns: * stands for anything, also for slashes. names: as `named` has
      them. field: that holds the patterns, for the message.

  Raises:
    ValueError: a pattern that matches none.
  """
  names, patterns = list(names), list(patterns)
  for pattern in patterns:
    if not fnmatch.filter(names, pattern):
      near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
      raise ValueError(
        f"{field} has {shown(pattern)}, which matches no such parameter;"
        " expected a pattern of names such as"
        f" {(near or names or ['*'])[0]}, in which * stands for anything."
      )
  return [
    name
    for name in names
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
  ]


def check_shapes(
  arrays: PyTree, expected: dict[str, tuple[int, ...]], where: str
) -> None:
  """Refuses arrays that are missing, too many, or of other shapes.

  Args:
    arrays: a tree of them. expected: what `shapes_of` should say of it.
    where: whose they should be, for the message.

  Raises:
    ValueError: names the first difference.
  """
  shapes = shapes_of(arrays)
  for name in sorted(expected.keys() | shapes.keys()):
    ours, theirs = expected.get(name), shapes.get(name)
    if ours != theirs:
      raise ValueError(
        f"the parameters are not those of {where}: {name} is"
        f" {'not there' if theirs is None else f'of shape {theirs}'}; expected"
        f" {'no such array' if ours is None else f'shape {ours}'}: give those"
        " that were made for this configuration."
      )


@jax.jit
def _are_finite(arrays: PyTree) -> PyTree:
  return jax.tree.map(lambda array: jnp.isfinite(array).all(), arrays)


Check = Callable[[Any, str], Any]
"""(value, name of the argument) → what the function gets."""


def checked(
  together: Callable[[dict[str, Any]], None] | None = None, **checks: Check
) -> Callable:
  """Decorates a function: its arguments of these names are checked first.

  Args:
    together: then called with all arguments by name, to compare them.
    checks: one for each name.
  """

  def decorate(function):
    signature = inspect.signature(function)
    names = [name for name in signature.parameters if name != "self"]
    defaults = {name: signature.parameters[name].default for name in names}

    @functools.wraps(function)
    def call(*args, **named):
      try:
        bound = signature.bind(*args, **named)
      except TypeError as error:
        raise ValueError(
          f"{function.__name__.lstrip('_')}: {error}; its arguments are"
          f" {', '.join(names)}."
        ) from None
      for name, value in bound.arguments.items():
        if name in checks:
          bound.arguments[name] = checks[name](value, name)
      if together:
        together({**defaults, **bound.arguments})
      return function(*bound.args, **bound.kwargs)

    return call

  return decorate


def count(value: Any, name: str) -> int | None:
  """An integer, 1 or more, or None."""
  number = as_int(value)
  words = "1 or more" if number is not None else "an integer, 1 or more"
  is_count = value is None or (number is not None and number >= 1)
  check(is_count, f"{name} is {shown(value)}; expected {words}.")
  return number


def integer(value: Any, name: str) -> int:
  """An integer of Python, numpy or jax; no boolean."""
  found = as_int(value)
  check(found is not None, f"{name} is {shown(value)}; expected an integer.")
  return found


def real(value: Any, name: str) -> Any:
  """A number of Python, numpy or jax, perhaps traced; no boolean."""
  dtype = getattr(value, "dtype", type(value))
  is_one = is_number(dtype) and not getattr(value, "shape", ())
  is_one = is_one and not jnp.issubdtype(dtype, jnp.bool_)
  check(is_one, f"{name} is {shown(value)}; expected a number.")
  return value


def flag(value: Any, name: str) -> bool:
  """True or False."""
  check(
    isinstance(value, bool | np.bool_),
    f"{name} is {shown(value)}; expected True or False.",
  )
  return bool(value)


def as_int(value: Any) -> int | None:
  """The integer that a value is, None if it is none; booleans are none."""
  is_bool = getattr(value, "dtype", type(value)) in (bool, np.dtype(bool))
  try:
    return None if is_bool else operator.index(value)
  except (TypeError, jax.errors.JAXTypeError):
    return None


def one_of(*allowed: str | None) -> Check:
  """The check that a value is one of these words, or None if that is one."""

  def check_word(value: Any, name: str) -> str | None:
    is_word = value is None or isinstance(value, str)
    words = ", ".join(map(repr, allowed))
    check(
      is_word and value in allowed,
      f"{name} is {shown(value)}; expected one of {words}.",
    )
    return value

  return check_word


def instance(types: Any, expected: str) -> Check:
  """The check that a value is of these types, or None."""

  def check_type(value: Any, name: str) -> Any:
    check(
      value is None or isinstance(value, types),
      f"{name} is {shown(value)}; expected {expected}.",
    )
    return value

  return check_type


def path(value: Any, name: str) -> str | os.PathLike:
  """The path of a file or folder, that is not empty."""
  is_path = isinstance(value, str | os.PathLike)
  check(
    is_path and bool(os.fspath(value)),
    f"{name} is {shown(value)}; expected a path or a name.",
  )
  return value


def numbers(value: Any, name: str, expected: str) -> np.ndarray:
  """What is an array of booleans or finite numbers, on the host.

  Args:
    value: of numpy, jax, PIL, or nested lists. name: for messages.
    expected: words for what it should be.
  """
  check(
    not is_traced(value),
    f"{name} is traced by a transformation such as jax.jit; call this outside"
    " of it: it runs compiled programs itself.",
  )
  try:
    array = np.asarray(value)
  except (ValueError, TypeError):  # rows of different lengths, for example
    array = np.asarray(None)
  check(
    is_number(array.dtype),
    f"{name} of type {type(value).__name__} is no array of booleans or numbers;"
    f" expected {expected}.",
  )
  is_float = jnp.issubdtype(array.dtype, jnp.floating)
  for at in np.argwhere(~np.isfinite(array))[:1].tolist() if is_float else ():
    raise ValueError(
      f"{name}{at or ''} is {array[tuple(at)]}; expected {expected}, all of"
      " them finite."
    )
  return array


def shaped(value: Any, name: str, expected: str) -> Any:
  """Floats with a shape, perhaps traced; what is known must be finite."""
  if not hasattr(value, "shape"):
    return numbers(value, name, expected).astype(np.float32)
  check(
    jnp.issubdtype(value.dtype, jnp.floating),
    f"{name} is {shown(value)}; expected floats, {expected}.",
  )
  if not is_traced(value) and getattr(value, "is_fully_addressable", True):
    numbers(value, name, expected)
  return value


def is_traced(value: Any) -> bool:
  """Whether only the shape and type of an array are known."""
  return isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct)


def is_number(dtype: Any) -> bool:
  """Whether it is a type of booleans, integers or floats."""
  kinds = (jnp.bool_, jnp.integer, jnp.floating)
  return any(jnp.issubdtype(dtype, kind) for kind in kinds)
