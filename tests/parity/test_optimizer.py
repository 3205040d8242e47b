"""Three optimizer steps against the published program.

Its own float32 run is 9e-5 (parameters) and 3.6e-6 (EMA) off float64: Adam's
first steps divide small gradients by themselves.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.experiment import DataConfig, Experiment, TrainingConfig
from marjax.latents.pixels import PixelsConfig
from marjax.train.optimizer import is_decayed, make_optimizer
from marjax.train.state import TrainState
from marjax.train.step import train_step
from parity.published import TINY, params_of, tokens_of
from parity.test_model import draws_of


def test_decay_mask(golden):
  meta = json.loads(str(golden("train3.npz")["meta_json"]))
  marks = {
    name: np.full_like(array, name in meta["decay"])
    for name, array in golden("weights_model.npz").items()
  }
  expected = jax.tree.map(lambda a: bool(a.all()), params_of(marks))
  assert is_decayed(params_of(marks)) == expected


def experiment_of(num_microbatches):
  """The recorded run: its tokens are patches of grey images, cut anew."""
  return Experiment(
    name="published",
    codec=PixelsConfig(image_size=16, channels=1, patch=4),
    model=TINY,
    data=DataConfig("synthetic", image_size=16, channels=1, num_classes=10),
    training=TrainingConfig(
      batch_size=4,
      num_steps=3,
      num_microbatches=num_microbatches,
      ema_rate=0.99,
      clip_norm=3.0,
    ),
  )


def below(arrays, prefix):
  """Those whose names begin with it, by the rest of their names."""
  return {
    name.removeprefix(prefix): array
    for name, array in arrays.items()
    if name.startswith(prefix)
  }


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_three_steps(golden, model_params, ema_params, num_microbatches):
  """`train_step` itself, with the recorded order, masks and loss draws."""
  theirs = golden("train3.npz")
  experiment = experiment_of(num_microbatches)
  rates = jnp.asarray([theirs[f"step{i}/lr"] for i in range(3)], jnp.float32)
  optimizer = make_optimizer(experiment.training, lambda count: rates[count])

  @jax.jit
  def step(state, batch, draws):
    return train_step(
      experiment,
      optimizer,
      lambda count: rates[count],
      state,
      batch,
      draws=draws,
      deterministic=True,
    )

  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=model_params,
    ema_params=ema_params,
    opt_state=optimizer.init(model_params),
  )
  for i in range(3):
    now = below(theirs, f"step{i}/")
    now["num_masked"] = np.ceil(16 * now["mask_rate"])
    now["drop_mask"] = now["label_u"] < 0.1
    batch = {
      "image": experiment.codec.to_latents(tokens_of(now["x"])),
      "label": jnp.asarray(now["labels"], jnp.int32),
      "id": jnp.arange(4),
    }
    state, metrics = step(state, batch, draws_of(now))
    np.testing.assert_allclose(metrics["loss"], now["loss"], rtol=1e-4)
    assert metrics["learning_rate"] == rates[i]
  assert state.step == 3
  params, ema = state.params, state.ema_params

  def published(kind):
    return params_of(below(theirs, f"step2/{kind}/"))

  for ours, kind, tolerance in ((params, "param", 3e-4), (ema, "ema", 1e-5)):
    jax.tree.map(
      lambda a, b, tolerance=tolerance: np.testing.assert_allclose(
        a, b, rtol=0, atol=tolerance
      ),
      ours,
      published(kind),
    )
