"""Encode a data set once: a cache of latents to train from.

Each image and its mirror image go through the autoencoder; the moments of both
are written to OUT, with a copy of the autoencoder. Give the same command again
after a kill, and it goes on; give it on every host of several, and they share
the work. Without --source, --verify and --statistics look at a whole cache.
"""

import argparse
from pathlib import Path

from marjax import outputs
from marjax.cli import flags, settings
from marjax.data.latent_index import CacheSettings, Choices, Storage

FLAGS = """
--out CACHE, required
  the folder of the cache
"""

IMAGES = """
--source folder|tfds
  DATA_DIR/SPLIT/CLASS/*.JPEG, or a prepared TFDS dataset
--data_dir FOLDER
  of the images, or of prepared datasets (default for tfds: $MARJAX_DATA or
  ~/.cache/marjax/datasets)
--name NAME, default imagenet2012
  of the TFDS dataset
--split SPLIT, default train
  of the images
--without_classes
  of a folder: DATA_DIR/SPLIT/*.JPEG, all of class 0
--autoencoder PATH, default kl16
  a released autoencoder, by path or published name
"""

LOOKING = """
--statistics
  print mean and standard deviation per channel and the latent scale, and write
  them to CACHE/statistics.json
--verify
  hash every file of the cache
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax cache-latents`."""
  flags.add(parser, FLAGS)
  flags.add(parser.add_argument_group("images"), IMAGES)
  settings.add_flags(parser.add_argument_group("what is written"), Storage)
  settings.add_flags(parser.add_argument_group("how it is done"), Choices)
  flags.add(parser.add_argument_group("looking at a whole cache"), LOOKING)


def run(args: argparse.Namespace) -> None:
  """Flags → write → the reports that were asked for."""
  from marjax.data import latent_statistics

  if args.source is None and not (args.verify or args.statistics):
    raise ValueError(
      "--source is missing; expected folder or tfds, or --verify or"
      " --statistics for a cache that is there."
    )
  cache = outputs.local(args.out)
  if args.source is not None and not write(args, cache):
    return
  if args.verify:
    opened(cache).verify(progress=True)
    print(f"{cache} is whole: every file has its hash.")
  if args.statistics:
    found = latent_statistics.measure(opened(cache), progress=True)
    print(found)
    print(latent_statistics.save(cache, found))


def write(args: argparse.Namespace, cache: Path) -> bool:
  """Writes this host's share; whether the cache is whole then."""
  import dataclasses

  import jax

  from marjax.convert import fetching
  from marjax.data import contents, latent_cache, latent_writer, sources
  from marjax.parallel.mesh import make_mesh
  from marjax.release import loading
  from marjax.release.digest import digest
  from marjax.release.workdir import DATA

  choices = settings.from_flags(Choices, args)
  storage = settings.from_flags(Storage, args)
  source = sources.open_source(source_config(args), args.split)
  path = fetching.find(args.autoencoder)
  mesh = make_mesh(devices=jax.local_devices())
  release = loading.load(path, mesh)
  latent_cache.check_autoencoder(release.card, str(path))
  codec = release.card.codec
  size = choices.image_size or codec.image_size
  described = CacheSettings(
    source=source.description,
    split=args.split,
    num_source=min(choices.num_examples or len(source), len(source)),
    codec=dataclasses.replace(codec, image_size=size),
    digest=digest(release.codec_params),
    **vars(storage),
  )
  choices.share(described.num_shards)
  found = contents.of_source(source, described.num_source)
  print(found, flush=True)
  index = latent_writer.write(
    cache, source, release, path, mesh, described, choices, progress=True
  )
  contents.write(cache / DATA, found)
  if index is None:
    print(f"{cache}: this host's shards are whole, others are still missing.")
    return False
  print(report(cache, index))
  return True


def source_config(args: argparse.Namespace):
  """The DataConfig of the images; any number of classes will do."""
  from marjax.experiment import DataConfig

  if args.without_classes and args.source != "folder":
    raise ValueError(
      "--without_classes is for --source folder; leave it out: a model without"
      " classes (model.backbone.condition.num_classes = 0) may be trained on"
      " any cache."
    )
  return DataConfig(
    source=args.source,
    image_size=256,  # unused: the cache crops to what its autoencoder takes
    num_classes=0 if args.without_classes else 2**31 - 1,
    name=args.name,
    data_dir=args.data_dir or "",
  )


def opened(cache: Path):
  """The whole cache, taken as it is."""
  from marjax.data import latent_cache, latent_index
  from marjax.experiment import DataConfig

  index = latent_index.read_index(cache)
  config = DataConfig(
    source="latents",
    image_size=index.settings.codec.image_size,
    num_classes=index.num_classes,
    data_dir=str(cache),
  )
  return latent_cache.CachedLatents(config)


def report(cache: Path, index) -> str:
  """What was written, in a few lines."""
  num_bytes = sum(shard.num_bytes for shard in index.shards.values())
  lines = [
    f"{index.num_examples} images, plain and mirrored, in"
    f" {len(index.shards)} shards of {num_bytes / 1e9:.4g} GB in all: {cache}"
  ]
  for name, error in index.errors.items():
    lines.append(
      f"error of {index.settings.dtype}, {name}: at most {error.max_error:.3g},"
      f" rms {error.rms_error:.3g} ({100 * error.relative_error:.2g} %)"
    )
  if index.skipped:
    lines.append(f"{len(index.skipped)} images were skipped, see index.json:")
    lines += [f"  {image.name}: {image.reason}" for image in index.skipped[:10]]
  return "\n".join(lines)
