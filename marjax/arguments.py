"""What people call a function with: one sentence for what does not fit.

1. `checked` decorates a public function. Each argument that it names is handed
   to a check first, which gives back what the function gets, or raises.
2. `count`, `integer`, `real`, `flag` and `path` check plain values, `numbers`
   what should be an array, `shaped` what may be traced by somebody's `jax.jit`:
   of that only shape and type are known.
3. `shown` is how a value that does not fit stands in the sentence.

All raise ValueError.
"""

import functools
import inspect
import operator
import os
import reprlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marjax.schema import check

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
          f"{function.__name__}: {error}; its arguments are {', '.join(names)}."
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
      f"{name} is {repr(value) if is_word else shown(value)}; expected one of"
      f" {words}.",
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
    f" expected"
    f" {expected}.",
  )
  if jnp.issubdtype(array.dtype, jnp.floating):
    check_finite(array, name, expected)
  return array


def check_finite(array: np.ndarray, name: str, expected: str) -> None:
  """Refuses NaN and infinity, saying where the first is."""
  is_finite = np.isfinite(array)
  if not is_finite.all():
    at = np.argwhere(~is_finite)[0].tolist()
    raise ValueError(
      f"{name}{at or ''} is {array[tuple(at)]}; expected {expected}, all of"
      " them finite."
    )


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


def shown(value: Any) -> str:
  """A value in a sentence: type and shape of an array, else a short repr."""
  if getattr(value, "shape", None):
    return f"{value.dtype} [{', '.join(map(str, value.shape))}]"
  if value is None or as_int(value) is not None:
    return str(value)
  return f"{' '.join(reprlib.repr(value).split())} ({type(value).__name__})"
