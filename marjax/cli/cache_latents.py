"""Encode a data set once: a cache of latents to train from.

Each image and its mirror image go through the autoencoder; the moments of both
are written to OUT, with a copy of the autoencoder. Give the same command again
after a kill, and it goes on; give it on every host of several, and they share
the work. Without --source, --verify and --statistics look at a whole cache.
"""

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax cache-latents`."""
  parser.add_argument(
    "--out", required=True, metavar="CACHE", help="the folder of the cache"
  )
  _add_source_flags(parser.add_argument_group("images"))
  _add_cache_flags(parser.add_argument_group("what is written"))
  _add_work_flags(parser.add_argument_group("how it is done"))
  _add_report_flags(parser.add_argument_group("looking at a whole cache"))


def _add_source_flags(group) -> None:
  group.add_argument(
    "--source",
    choices=("folder", "tfds"),
    help="DATA_DIR/SPLIT/CLASS/*.JPEG, or a prepared TFDS dataset",
  )
  group.add_argument(
    "--data_dir",
    default="",
    metavar="FOLDER",
    help="of the images, or of prepared datasets (default for tfds:"
    " $MARJAX_DATA or ~/.cache/marjax/datasets)",
  )
  group.add_argument(
    "--name",
    default="imagenet2012",
    metavar="NAME",
    help="of the TFDS dataset (default: %(default)s)",
  )
  group.add_argument(
    "--split", default="train", help="of the images (default: %(default)s)"
  )
  group.add_argument(
    "--without_classes",
    action="store_true",
    help="of a folder: DATA_DIR/SPLIT/*.JPEG, all of class 0",
  )
  group.add_argument(
    "--num_examples",
    type=int,
    metavar="N",
    help="only the first N images of the split",
  )
  group.add_argument(
    "--max_skipped",
    type=int,
    default=100,
    metavar="N",
    help="images that may be unreadable on a host; each is named in the log and"
    " in CACHE/index.json (default: %(default)s)",
  )


def _add_cache_flags(group) -> None:
  group.add_argument(
    "--autoencoder",
    default="kl16",
    metavar="PATH",
    help="a released autoencoder, by path or published name (default:"
    " %(default)s)",
  )
  group.add_argument(
    "--image_size",
    type=int,
    metavar="N",
    help="pixels per side of the crops (default: the autoencoder's)",
  )
  group.add_argument(
    "--dtype",
    choices=("float16", "float32"),
    default="float16",
    help="of the stored moments (default: %(default)s; CACHE/index.json has its"
    " error)",
  )
  group.add_argument(
    "--matmul_precision",
    choices=("highest", "default"),
    default="highest",
    help="of float32 products: exact, or rounded as the accelerator likes,"
    " which is several times faster (default: %(default)s)",
  )
  group.add_argument(
    "--shard_size",
    type=int,
    default=5000,
    metavar="N",
    help="images in a file (default: %(default)s)",
  )


def _add_work_flags(group) -> None:
  group.add_argument(
    "--batch_size",
    type=int,
    metavar="N",
    help="images encoded at a time on this host (default: 16 per device)",
  )
  group.add_argument(
    "--num_threads",
    type=int,
    metavar="N",
    help="that read and crop images (default: one per core)",
  )
  group.add_argument(
    "--host",
    type=int,
    metavar="I",
    help="which of --num_hosts this is, from 0 (default: as jax says)",
  )
  group.add_argument(
    "--num_hosts",
    type=int,
    metavar="N",
    help="hosts that share the work; all must see CACHE (default: as jax says)",
  )


def _add_report_flags(group) -> None:
  group.add_argument(
    "--statistics",
    action="store_true",
    help="print mean and standard deviation per channel and the latent scale,"
    " and write them to CACHE/statistics.json",
  )
  group.add_argument(
    "--verify", action="store_true", help="hash every file of the cache"
  )


def run(args: argparse.Namespace) -> None:
  """Flags → write → the reports that were asked for."""
  from marjax.data import latent_index, latent_statistics

  if args.source is None and not (args.verify or args.statistics):
    raise ValueError(
      "--source is missing; expected folder or tfds, or --verify or"
      " --statistics for a cache that is there."
    )
  cache = latent_index.folder(args.out)
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
  from marjax.data.latent_card import CacheSettings
  from marjax.parallel.mesh import make_mesh
  from marjax.release import loading
  from marjax.release.digest import digest
  from marjax.release.workdir import DATA

  choices = latent_writer.Choices(
    host=jax.process_index() if args.host is None else args.host,
    num_hosts=args.num_hosts or jax.process_count(),
    batch_size=args.batch_size,
    max_skipped=args.max_skipped,
    num_threads=args.num_threads,
    progress=True,
  )
  source = sources.open_source(source_config(args), args.split)
  path = fetching.find(args.autoencoder)
  mesh = make_mesh(devices=jax.local_devices())
  release = loading.load(path, mesh)
  latent_cache.check_autoencoder(release.card, str(path))
  codec = release.card.codec
  if args.image_size:
    codec = dataclasses.replace(codec, image_size=args.image_size)
  count = len(source) if args.num_examples is None else args.num_examples
  settings = CacheSettings(
    source=source.description,
    split=args.split,
    num_source=min(count, len(source)),
    codec=codec,
    digest=digest(release.codec_params),
    dtype=args.dtype,
    matmul_precision=args.matmul_precision,
    shard_size=args.shard_size,
  )
  found = contents.of_source(source, settings.num_source)
  print(found, flush=True)
  index = latent_writer.write(
    cache, source, release, path, mesh, settings, choices
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
      " classes (model.backbone.num_classes = 0) may be trained on any cache."
    )
  return DataConfig(
    source=args.source,
    image_size=args.image_size or 256,
    num_classes=0 if args.without_classes else 2**31 - 1,
    name=args.name,
    data_dir=args.data_dir,
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
  for name, error in (
    ("mean", index.mean_error),
    ("log-variance", index.log_variance_error),
  ):
    lines.append(
      f"error of {index.settings.dtype}, {name}: at most {error['max']:.3g},"
      f" rms {error['rms']:.3g} ({100 * error['relative_rms']:.2g} %)"
    )
  if index.skipped:
    lines.append(f"{len(index.skipped)} images were skipped, see index.json:")
    lines += [f"  {image.name}: {image.reason}" for image in index.skipped[:10]]
  return "\n".join(lines)
