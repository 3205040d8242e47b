"""One step of training the label network: batch norm, loss, changed images.

`marjax.train.classifier` says what is done with it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, PyTree

from marjax.evaluate.networks.label import Label, Maps, Wider, pooled_maps

MOMENTUM, DECAY, SMOOTHING, EPSILON = 0.9, 5e-4, 0.1, 1e-5

LOGIT_SCALE = 0.125
"""Of the last layer in training, so that its first steps are not too long."""


class State(NamedTuple):
  """What a step changes: parameters {name: layer}, and the optimizer's."""

  params: PyTree
  optimizer: PyTree


def optimizer(
  peak: float, warmup: float, num_steps: int
) -> optax.GradientTransformation:
  """Stochastic gradients whose rate rises to `peak` and falls to 0.

  Args:
    warmup: share of the steps in which it rises.
  """
  rising = max(1, round(warmup * num_steps))
  falling = max(1, num_steps - rising)
  rate = optax.join_schedules(
    [
      optax.linear_schedule(0.0, peak, rising),
      optax.linear_schedule(peak, 0.0, falling),
    ],
    [rising],
  )
  return optax.chain(
    optax.add_decayed_weights(DECAY),
    optax.sgd(rate, momentum=MOMENTUM, nesterov=True),
  )


def initial(network: Label, key: Array) -> PyTree:
  """First parameters: of a convolution kernel, scale and bias."""
  init = jax.nn.initializers.he_normal()
  names = network.convolutions()
  params = {}
  for name, each in zip(names, jax.random.split(key, len(names)), strict=True):
    before, after = names[name]
    params[name] = {
      "kernel": init(each, (3, 3, before, after)),
      "scale": jnp.ones(after),
      "bias": jnp.zeros(after),
    }
  shapes = network.shapes()["classes"]
  # All classes are as likely at first.
  params["classes"] = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
  return params


def step_of(changes: optax.GradientTransformation, network: Label):
  """The function (state, key, images, labels) → state, loss."""

  def loss_of(params, images, labels):
    logits, _ = forward(params, images)
    wanted = jax.nn.one_hot(labels, network.num_classes)
    wanted = optax.smooth_labels(wanted, SMOOTHING)
    return optax.softmax_cross_entropy(logits, wanted).mean()

  def step(state: State, key, images, labels) -> tuple[State, Array]:
    images = augmented(key, images)
    loss, gradients = jax.value_and_grad(loss_of)(state.params, images, labels)
    updates, after = changes.update(gradients, state.optimizer, state.params)
    return State(optax.apply_updates(state.params, updates), after), loss

  return step


def augmented(key: Array, images: Maps) -> Maps:
  """Shifted images with a grey square, as the module's docstring says."""
  count, size = images.shape[:2]
  reach, side = size // 8, size // 4
  shifts, corners = (
    jax.random.randint(each, (count, 2), 0, most)
    for each, most in zip(
      jax.random.split(key), (2 * reach + 1, size), strict=True
    )
  )
  border = ((0, 0), (reach, reach), (reach, reach), (0, 0))
  padded = jnp.pad(images, border, mode="reflect")

  def shifted(image, shift):
    start = (shift[0], shift[1], 0)
    return jax.lax.dynamic_slice(image, start, images.shape[1:])

  images = jax.vmap(shifted)(padded, shifts)
  corners = corners - side // 2  # some squares reach over the border
  at = jnp.arange(size)
  inside = (at >= corners[..., None]) & (at < corners[..., None] + side)
  is_grey = inside[:, 0, :, None] & inside[:, 1, None, :]
  return jnp.where(is_grey[..., None], 0.0, images)


def forward(
  params: PyTree, images: Maps
) -> tuple[Float32[Array, "B classes"], PyTree]:
  """Logits with layers normalised by this batch; each one's mean, variance."""
  seen = {}

  def convolved(name: str, x: Maps) -> Wider:
    layer = params[name]
    x = jax.lax.conv_general_dilated(
      x,
      layer["kernel"],
      (1, 1),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    seen[name] = {"mean": mean, "variance": variance}
    scale = layer["scale"] * jax.lax.rsqrt(variance + EPSILON)
    return jax.nn.relu((x - mean) * scale + layer["bias"])

  pooled = pooled_maps(convolved, images)
  last = params["classes"]
  return LOGIT_SCALE * (pooled @ last["kernel"] + last["bias"]), seen


def statistics(params: PyTree, images: Maps) -> PyTree:
  """Mean and variance of every layer in a batch."""
  return forward(params, images)[1]


def folded(params: PyTree, seen: PyTree) -> PyTree:
  """Parameters of the network without batch norm, from statistics of layers."""
  plain = {}
  for name, moments in seen.items():
    layer = params[name]
    scale = layer["scale"] * jax.lax.rsqrt(moments["variance"] + EPSILON)
    plain[name] = {
      "kernel": layer["kernel"] * scale,
      "bias": layer["bias"] - moments["mean"] * scale,
    }
  last = params["classes"]
  return plain | {"classes": jax.tree.map(lambda x: LOGIT_SCALE * x, last)}
