"""Modules that people initialise themselves: their parameters are arrays.

Every parameter carries the logical names of its axes in a box of linen's, from
which `marjax.parallel.rules` places it on a mesh. Only what does so needs the
boxes, so `init` takes them off.
"""

from typing import Any

import flax.linen as nn


class Plain(nn.Module):
  """A module whose `init` gives arrays; `boxed_init` those with their axes."""

  @nn.nowrap
  def init(self, *args: Any, **kwargs: Any) -> Any:
    """The variables of `nn.Module.init`, as plain arrays."""
    return nn.unbox(self.boxed_init(*args, **kwargs))

  @nn.nowrap
  def boxed_init(self, *args: Any, **kwargs: Any) -> Any:
    """The variables of `nn.Module.init`, each with the names of its axes."""
    return super().init(*args, **kwargs)
