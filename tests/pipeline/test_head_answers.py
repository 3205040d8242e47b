"""What the head alone answers to wrong arguments: one sentence each."""

import jax
import jax.numpy as jnp
import pytest
import small
from sentences import refuses

import marjax
from marjax.head.categorical import CategoricalHeadConfig
from marjax.head.diffusion import DiffusionHead, DiffusionHeadConfig
from marjax.head.flow import FlowHeadConfig
from marjax.head.noise import KeyedNoise, LossDraws, RecordedNoise
from marjax.model import ModelConfig

NAN = float("nan")
HEAD = DiffusionHead(DiffusionHeadConfig(token_dim=3, width=8, depth=2))
Z, X, KEY = jnp.ones((5, 6)), jnp.ones((5, 3)), jax.random.key(0)


@pytest.fixture(scope="module")
def params():
  return HEAD.init(KEY, Z, X, key=KEY)


LOSS = [
  ({"key": None}, r"key is missing; expected a typed key, .* or draws="),
  ({"key": 0}, r"key is 0; expected a typed key, as jax.random.key\(0\)"),
  (
    {"key": jax.random.PRNGKey(0)},
    r"key is uint32 \[2\], of the old style; .* jax.random.wrap_key_data",
  ),
  (
    {"key": jax.random.split(KEY, 4)},
    r"key has shape \(4,\); expected one key",
  ),
  (
    {"z": jnp.ones((5, 7))},
    r"kernel is of shape \(6, 8\); expected shape \(7, 8\)",
  ),
  ({"z": jnp.ones(5)}, r"kernel is of shape \(6, 8\); expected shape \(5, 8\)"),
  ({"z": 1.0}, r"z has shape \(\); expected \[\*batch, W\]"),
  ({"z": Z.astype(int)}, r"z is int32 \[5, 6\]; expected floats"),
  ({"z": Z.at[2, 1].set(NAN)}, r"z\[2, 1\] is nan; expected"),
  ({"z": None}, "z of type NoneType is no array"),
  ({"z": "z"}, "z of type str is no array"),
]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    *LOSS,
    ({"target": X[:, :2]}, r"target has shape \(5, 2\); expected \(5, 3\)"),
    ({"target": X[:4]}, r"target has shape \(4, 3\); expected \(5, 3\)"),
    ({"target": X.astype(bool)}, r"target is bool \[5, 3\]; expected floats"),
    ({"target": X * NAN}, r"target\[0, 0\] is nan"),
    ({"weights": X}, r"weights has shape \(5, 3\); expected \(5,\)"),
    ({"weights": jnp.ones(5, int)}, r"weights is int32 \[5\]; expected floats"),
    ({"key": None, "draws": KEY}, "draws is .*; expected LossDraws"),
    (
      {"key": None, "draws": LossDraws(jnp.zeros((4, 2), int), X)},
      r"draws.timesteps has shape \(4, 2\); expected \(5, 2\)",
    ),
    (
      {"draws": LossDraws(jnp.zeros((5, 2), int), jnp.ones((5, 2, 3)))},
      "key and draws are both there; give one",
    ),
    ({"label": 3}, "loss: got an unexpected .* its arguments are z, target"),
  ],
)
def test_the_loss_of_the_head_alone(params, arguments, message):
  asked = {"z": Z, "target": X, "key": KEY, **arguments}
  refuses(lambda: HEAD.apply(params, **asked), message)


def test_the_head_alone_without_targets(params):
  message = "loss: missing a required argument: 'target'; its arguments are z"
  refuses(lambda: HEAD.apply(params, Z, key=KEY), message)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    *[(wrong, text.replace("draws=", "noise=")) for wrong, text in LOSS],
    ({"settings": 100}, "settings is 100; expected ReverseSettings"),
    ({"settings": marjax.Settings()}, "expected ReverseSettings"),
    ({"temperature": "1"}, r"temperature is '1'; expected a number"),
    ({"temperature": None}, "temperature is None; expected a number"),
    ({"temperature": True}, "temperature is True"),
    ({"temperature": -1.0}, "temperature is -1.0 .*; expected a finite number"),
    ({"temperature": NAN}, "temperature is nan"),
    ({"temperature": Z}, r"temperature is float32 \[5, 6\]; expected a number"),
    ({"guidance": 3.0}, "guidance is 3.0 .*; expected a pair"),
    ({"guidance": (Z[:4], 2.0)}, r"guidance\[0\] has shape \(4, 6\); expected"),
    ({"guidance": (Z, "2")}, r"guidance\[1\], the scale, is '2'"),
    ({"key": None, "noise": 3}, "noise is 3; expected KeyedNoise"),
    (
      {"key": None, "noise": KeyedNoise(jax.random.split(KEY, 4))},
      r"row_keys has shape \(4,\); expected \(5,\)",
    ),
    (
      {"key": None, "noise": RecordedNoise(X, jnp.ones((5, 2, 3)))},
      "noise was recorded for 2 steps; expected 100",
    ),
  ],
)
def test_the_sampler_of_the_head_alone(params, arguments, message):
  asked = {"z": Z, "key": KEY, **arguments}
  refuses(lambda: HEAD.apply(params, **asked, method="sample"), message)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    (lambda p: {}, "net/blocks_0.* is not there; expected shape"),
    (lambda p: p["params"], "net/blocks_0.* is not there"),
    (lambda p: {"params": {"net": {}}}, "net/blocks_0.* is not there"),
    (
      lambda p: DiffusionHead(DiffusionHeadConfig(3, width=8, depth=3)).init(
        KEY, Z, X, key=KEY
      ),
      "net/blocks_2.* is of shape .*; expected no such array",
    ),
  ],
)
def test_the_head_alone_with_other_parameters(params, wrong, message):
  message = (
    f"the parameters are not those of a DiffusionHead for z of .*{message}"
  )
  refuses(lambda: HEAD.apply(wrong(params), Z, X, key=KEY), message)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"z": jnp.ones((5, 7))}, r"of shape \(6, 8\); expected shape \(7, 8\)"),
    ({"z": Z.at[2, 1].set(NAN)}, r"z\[2, 1\] is nan; expected"),
    ({"target": X[:, :2]}, r"target has shape \(5, 2\); expected \(5, 3\)"),
    ({"target": X.astype(int)}, r"target is int32 \[5, 3\]; expected floats"),
    ({"num_steps": 0}, "num_steps is 0; expected 1 or more"),
    ({"num_steps": 2.5}, r"num_steps is 2.5 \(float\); expected an integer, 1"),
    ({"num_steps": None}, "num_steps is None; expected 1 or more"),
  ],
)
def test_the_likelihood_of_the_head_alone(arguments, message):
  head = FlowHeadConfig(token_dim=3, width=8, depth=2).build()
  params = head.init(KEY, Z, X, key=KEY)
  asked = {"z": Z, "target": X, **arguments}
  refuses(lambda: head.apply(params, **asked, method="log_likelihood"), message)


CODES = jnp.array([0, 6, 3, 2, 1])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"target": X[:, 0]}, r"target is float32 \[5\]; expected integers, \[\*b"),
    ({"target": X}, r"target is float32 \[5, 3\]; expected integers"),
    ({"target": CODES > 2}, r"target is bool \[5\]; expected integers"),
    ({"target": [0, 1.5, 2, 3, 4]}, r"target is float64 \[5\]; expected int"),
    ({"target": None}, "target of type NoneType is no array"),
    ({"target": CODES[:4]}, r"target has shape \(4,\); expected \(5,\)"),
    ({"target": CODES[:, None]}, r"target has shape \(5, 1\); expected \(5,"),
    (
      {"target": CODES.at[2].set(7)},
      r"target\[2\] is 7; expected codes 0 .. 6, of a tokenizer of the",
    ),
    ({"target": CODES - 1}, r"target\[0\] is -1; expected codes 0 .. 6"),
    ({"target": [0, 1, 2, 3, 99]}, r"target\[4\] is 99; expected codes"),
    ({"weights": X}, r"weights has shape \(5, 3\); expected \(5,\)"),
    ({"z": Z.at[2, 1].set(NAN)}, r"z\[2, 1\] is nan; expected"),
    ({"draws": 3}, r"draws is 3; expected tuple, or None"),
  ],
)
def test_the_loss_of_a_head_of_codes(arguments, message):
  head = CategoricalHeadConfig(7).build()
  params = head.init(KEY, Z, CODES)
  assert jnp.isfinite(head.apply(params, Z, CODES)["loss"])
  refuses(
    lambda: head.apply(params, **{"z": Z, "target": CODES, **arguments}),
    message,
  )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"key": None}, r"key is missing; expected a typed key, .* or noise="),
    ({"settings": marjax.ReverseSettings()}, "expected CategoricalSettings"),
    ({"temperature": -1.0}, "temperature is -1.0 .*; expected a finite number"),
    ({"guidance": (Z[:4], 2.0)}, r"guidance\[0\] has shape \(4, 6\); expected"),
    (
      {"key": None, "noise": RecordedNoise(X, X[:, None])},
      r"noise.start has shape \(5, 3\); expected \(5, 7\) for these tokens",
    ),
  ],
)
def test_the_sampler_of_a_head_of_codes(arguments, message):
  head = CategoricalHeadConfig(7).build()
  params = head.init(KEY, Z, CODES)
  asked = {"z": Z, "key": KEY, **arguments}
  refuses(lambda: head.apply(params, **asked, method="sample"), message)


def test_codes_for_a_head_of_floats(params):
  codes = jnp.ones((5, 3), int)
  message = r"target is int32 \[5, 3\]; expected floats"
  refuses(lambda: HEAD.apply(params, Z, codes, key=KEY), message)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_codes": 1}, "num_codes is 1; expected 2 to 1048576"),
    (
      {"label_smoothing": 1.0},
      "label_smoothing is 1.0; expected 0 or more",
    ),
    ({"dtype": "float16"}, "dtype is 'float16'; expected one of"),
  ],
)
def test_the_shape_of_a_head_of_codes(fields, message):
  refuses(lambda: CategoricalHeadConfig(**{"num_codes": 7, **fields}), message)


def test_a_backbone_of_floats_with_a_head_of_codes():
  refuses(
    lambda: ModelConfig(small.MODEL.backbone, CategoricalHeadConfig(7)),
    r"floats of shape \(4,\) and the categorical head draws codes",
  )


def test_the_head_alone_inside_jit(params):
  @jax.jit
  def loss(params, z, target, weights, key):
    return HEAD.apply(params, z, target, weights, key=key)["loss"]

  @jax.jit
  def sample(params, z, key, temperature, scale):
    return HEAD.apply(
      params,
      z,
      marjax.ReverseSettings(3),
      key=key,
      temperature=temperature,
      guidance=(z, scale),
      method="sample",
    )

  assert jnp.isfinite(loss(params, Z, X, jnp.ones(5), KEY))
  assert sample(params, Z, KEY, 0.5, 2.0).shape == (5, 3)
  rows = jax.random.split(KEY, 5)
  assert jnp.isfinite(
    loss(params, Z.astype(jnp.bfloat16), X, jnp.ones(5), rows)
  )
