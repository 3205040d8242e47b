"""Published names and shapes are recognised, and leave no key over."""

import jax
import pytest
from convert.listings import listing

from marjax.convert import kl, mar, recognise, table
from marjax.latents.kl import KLConfig
from marjax.parallel.mesh import host_mesh
from marjax.release import loading

COUNTS = {
  "base": ("MAR-B", 207_924_768, 2.9),
  "large": ("MAR-L", 478_326_304, 3.0),
  "huge": ("MAR-H", 942_403_104, 3.2),
}


def target_of(card):
  return loading.abstract_weights(card.model or card.codec, host_mesh())


@pytest.mark.parametrize("size", COUNTS)
def test_published_models_convert_with_no_key_left(size):
  shapes = listing(size)
  assert recognise.kind_of(shapes) == "model"
  card = recognise.card(shapes, KLConfig())
  name, count, scale = COUNTS[size]
  target = target_of(card)
  places = table.assign(mar.RULES, shapes, target)
  assert len(places) == len(shapes)
  assert sum(leaf.size for leaf in jax.tree.leaves(target)) == count
  assert card.name == name
  assert card.codec == KLConfig()
  assert card.class_names[207] == "n02099601 golden retriever"
  presets = {
    name: (s.num_ar_steps, s.guidance_scale, s.guidance_schedule, s.temperature)
    for name, s in card.presets.items()
  }
  assert presets == {
    "published": (256, scale, "linear", 1.0),
    "unguided": (256, 1.0, "linear", 0.95),
    "fast": (64, scale, "linear", 1.0),
    "notebook": (64, 4.0, "constant", 1.0),
  }
  assert {s.head.num_steps for s in card.presets.values()} == {100}
  assert card.sampling == card.presets["fast"]


def test_the_published_autoencoder_is_recognised():
  shapes = listing("kl16")
  assert recognise.kind_of(shapes) == "autoencoder"
  card = recognise.card(shapes, KLConfig())
  assert card.codec == KLConfig()
  assert len(table.assign(kl.RULES, shapes, target_of(card))) == 312


def test_an_autoencoder_of_unknown_scale_asks_for_it():
  shapes = {
    name: shape
    for name, shape in listing("kl16").items()
    if ".down.4." not in name
  }
  with pytest.raises(ValueError, match=r"pass latent_scale \(--latent_scale\)"):
    recognise.autoencoder(shapes)
  assert recognise.autoencoder(shapes, 0.18).latent_scale == 0.18


@pytest.mark.parametrize(
  ("name", "shape"),
  [
    ("z_proj.weight", (768,)),
    ("z_proj.weight", (0, 16)),
    ("encoder_pos_embed_learned", (320,)),
    ("diffloss.net.input_proj.weight", ()),
  ],
)
def test_odd_shapes_are_one_sentence(name, shape):
  shapes = {**listing("base"), name: shape}
  with pytest.raises(ValueError, match=f"{name} has shape .*; expected"):
    recognise.model(shapes)


def test_half_an_autoencoder_is_one_sentence():
  shapes = {n: s for n, s in listing("kl16").items() if ".down." not in n}
  with pytest.raises(ValueError, match=r"have no encoder\.down\.0"):
    recognise.autoencoder(shapes)


@pytest.mark.parametrize("heads", [0, -2, 7])
def test_wrong_heads_are_one_sentence(heads):
  with pytest.raises(ValueError, match=r"expected (1 to|a multiple)"):
    recognise.model(listing("base"), num_heads=heads)


def test_tokens_that_the_autoencoder_cannot_make_are_refused():
  config = recognise.card(listing("base"), KLConfig()).model
  eight = KLConfig(
    multipliers=(1, 2, 4, 4), latent_channels=4, has_level_attention=False
  )
  codec = recognise.codec_of(config, eight)
  assert (codec.patch, codec.image_size) == (2, 256)
  with pytest.raises(ValueError, match="name the autoencoder that it was"):
    recognise.codec_of(config, KLConfig(latent_channels=32))
