"""Compiled programs: how many, for how long, and that nothing else grows.

1. Values that change no shape compile nothing, whatever they are.
2. Numbers of images are padded to a few.
3. A pipeline keeps a bounded number of programs, the newest, and all that one
   request needs; those that it drops, and all with itself, are freed.
"""

import gc
import itertools
import weakref

import jax
import numpy as np
import pytest
import small

from marjax.generate.settings import Settings
from marjax.head.reverse import ReverseSettings
from marjax.parallel.mesh import make_mesh
from marjax.requests import batching, compiled
from marjax.requests.compiled import Program, Programs
from marjax.tokens import regions
from marjax.train.samples import Sampler
from marjax.train.writers import Writer

SETTINGS = Settings(
  num_ar_steps=3,
  num_buckets=1,
  guidance_scale=2.0,
  head=ReverseSettings(num_steps=3),
)


@pytest.fixture
def pipe():
  return small.pipe()


@pytest.fixture
def compilations():
  """Names of what jax compiled since; programs of jax.numpy as well."""
  events, is_on = [], [True]

  def listen(event, duration, **_):
    if is_on[0] and event == "/jax/core/compile/backend_compile_duration":
      events.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield events
  is_on[0] = False


@pytest.mark.slow
def test_values_compile_nothing(pipe, compilations):
  image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)

  def everything(seed: int, settings: Settings, mask):
    pipe.generate([seed] * 3, seed, settings)
    pipe.edit(image, mask, seed, seed, settings, num_images=3)
    pipe.tokenise([image] * 3)

  ddim = SETTINGS.changed({"head": {"sampler": "ddim"}})
  everything(0, SETTINGS, regions.half(8, "left"))
  everything(0, ddim, regions.half(8, "left"))
  assert compilations
  compilations.clear()
  programs = len(pipe.programs)
  for i, mask in enumerate(
    [
      regions.half(8, "top"),
      regions.box(8, 0, 0, 2, 3),
      regions.half(8, "left"),
    ]
  ):
    changed = {
      "temperature": 0.5 + i / 10,
      "guidance_scale": 1.5 + i,
      "guidance_schedule": ("linear", "constant")[i % 2],
      "head": {
        "ddim_eta": 0.3 + 0.3 * i,
        "start": 700 + i,
        "spacing": ("even", "stride")[i % 2],
      },
    }
    for base in (SETTINGS, ddim):
      everything(i + 1, base.changed(changed), mask)
  assert not compilations
  assert len(pipe.programs) == programs


def test_numbers_of_images_are_padded_to_a_few(pipe, compilations):
  quick = Settings(num_ar_steps=1, head=ReverseSettings(num_steps=2))
  for count in range(1, 7):
    labels = [count % 10] * count
    assert len(pipe.latents(labels, settings=quick)) == count
  # For each of 1, 2, 3, 4, 6: draw, begin, one segment, finish.
  assert len(pipe.programs) == 5 * 4
  compilations.clear()
  for count in (5, 3, 6):
    pipe.latents([0] * count, settings=quick)
  assert not compilations


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("largest", [8, 64])
def test_padding_is_at_most_half_of_what_is_asked_for(devices, largest):
  mesh, sizes = make_mesh(devices=jax.devices()[:devices]), set()
  for count in range(1, 300):
    size = batching.batch_size(mesh, count, None, largest)
    sizes.add(size)
    assert size % devices == 0
    assert size <= largest * devices
    computed = len(list(batching.batches(count, size))) * size
    whole = -(-count // devices) * devices
    assert computed <= 1.5 * whole + devices
  assert len(sizes) <= 12


def test_a_batch_size_that_is_asked_for_stays():
  mesh = make_mesh(devices=jax.devices()[:2])
  assert batching.batch_size(mesh, 100, 10, 64) == 10
  assert batching.batch_size(mesh, 100, 7, 64) == 8
  assert batching.batch_size(mesh, 100, 100, 64) == 100
  assert batching.batch_size(mesh, 3, 100, 64) == 4


def plus(number: int, array):
  return array + number


def wanted(numbers) -> list[Program]:
  return [Program(plus, (number,), (np.ones(2),)) for number in numbers]


def test_the_newest_programs_are_kept_and_others_freed(monkeypatch):
  monkeypatch.setattr(compiled, "MOST", 3)
  monkeypatch.setattr(compiled, "SPARE", 0)
  programs, mesh, alive = Programs(), small.one_device(), {}
  for number in (0, 1, 2, 0, 3):
    (run,) = programs.of(mesh, wanted([number]))
    np.testing.assert_array_equal(run(np.ones(2)), [1 + number] * 2)
    alive.setdefault(number, weakref.ref(run))
    del run
  gc.collect()
  # 1 was not used for longest.
  assert [bool(alive[number]()) for number in range(4)] == [1, 0, 1, 1]
  del programs
  gc.collect()
  assert not any(ref() for ref in alive.values())


@pytest.mark.slow
def test_a_large_request_is_kept_whole(monkeypatch, compilations):
  monkeypatch.setattr(compiled, "MOST", 3)
  programs, mesh = Programs(), small.one_device()
  for _ in range(2):
    compilations.clear()
    programs.of(mesh, wanted([100]))
    programs.of(mesh, wanted(range(6)))
    programs.of(mesh, wanted([101]))
  assert not compilations
  assert len(programs) == 8


def test_varied_calls_leave_a_bounded_number_of_programs(monkeypatch):
  monkeypatch.setattr(compiled, "MOST", 4)
  pipe = small.pipe()
  refs, most, arrays = [], 0, []
  for count, steps in itertools.product((1, 2), (1, 2)):
    settings = Settings(num_ar_steps=steps, head=ReverseSettings(num_steps=2))
    pipe.generate([0] * count, settings=settings)
    most = max(most, len(pipe.programs))
    refs += map(weakref.ref, pipe.programs._compiled.values())
    gc.collect()
    arrays.append(len(jax.live_arrays()))
  assert len(refs) > most <= 2 + compiled.SPARE
  alive = {id(ref()) for ref in refs if ref() is not None}
  assert len(alive) == len(pipe.programs)
  assert arrays[-1] == arrays[0]
  del pipe
  gc.collect()
  assert not any(ref() for ref in refs)


def test_looks_while_training_share_their_programs(tmp_path, compilations):
  class NoWriter(Writer):
    def __init__(self):
      pass

    def write_images(self, step, images):
      pass

  sampler = Sampler(small.EXPERIMENT, small.one_device(), tmp_path, NoWriter())
  first, second = small.params(), small.params(0.2)
  sampler.draw(1, first)
  compilations.clear()
  sampler.draw(2, second)
  assert len(list(tmp_path.rglob("*.png"))) == 2
  assert not compilations
