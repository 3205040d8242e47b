"""Three optimizer steps against the published program.

Its own float32 run is 9e-5 (parameters) and 3.6e-6 (EMA) off float64: Adam's
first steps divide small gradients by themselves.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from marjax.experiment import TrainingConfig
from marjax.train.optimizer import is_decayed, make_optimizer, update_ema
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


def test_three_steps(golden, model_params, ema_params):
  theirs = golden("train3.npz")
  config = TrainingConfig(
    batch_size=4, num_steps=3, ema_rate=0.99, clip_norm=3.0
  )
  rates = jnp.asarray([theirs[f"step{i}/lr"] for i in range(3)], jnp.float32)
  optimizer = make_optimizer(config, lambda count: rates[count])

  @jax.jit
  def step(params, ema, opt_state, tokens, draws, index):
    def loss(params):
      return TINY.build().apply({"params": params}, tokens, draws).loss

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return params, update_ema(config, ema, params, index), opt_state, value

  params, ema = model_params, ema_params
  opt_state = optimizer.init(params)
  for i in range(3):
    now = {
      name.removeprefix(f"step{i}/"): array
      for name, array in theirs.items()
      if name.startswith(f"step{i}/")
    }
    now["num_masked"] = np.ceil(16 * now["mask_rate"])
    now["drop_mask"] = now["label_u"] < 0.1
    params, ema, opt_state, loss = step(
      params, ema, opt_state, tokens_of(now["x"]), draws_of(now), i
    )
    np.testing.assert_allclose(loss, now["loss"], rtol=1e-4)

  def published(kind):
    prefix = f"step2/{kind}/"
    return params_of(
      {
        name.removeprefix(prefix): array
        for name, array in theirs.items()
        if name.startswith(prefix)
      }
    )

  for ours, kind, tolerance in ((params, "param", 3e-4), (ema, "ema", 1e-5)):
    jax.tree.map(
      lambda a, b, tolerance=tolerance: np.testing.assert_allclose(
        a, b, rtol=0, atol=tolerance
      ),
      ours,
      published(kind),
    )
