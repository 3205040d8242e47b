"""Classes by name: what people call them, and what no name can settle."""

import jax.numpy as jnp
import numpy as np
import pytest

from marjax.backbone import classes

PETS = ("cat, kitty", "dog", "guinea pig, cavy", "dog-fish", "St. Bernard's")


def imagenet(*labels):
  return classes.resolve(labels, classes.imagenet(), 1000)


def pets(*labels):
  return classes.resolve(labels, PETS, len(PETS))


def names(i):
  """All synonyms of a class of ImageNet."""
  return classes.imagenet()[i].partition(" ")[2].split(", ")


def test_the_classes_are_in_the_order_of_their_ids():
  entries = classes.imagenet()
  ids = [entry.split(" ")[0] for entry in entries]
  assert len(set(ids)) == 1000
  assert ids == sorted(ids)
  assert all(len(i) == 9 and i[0] == "n" and i[1:].isdigit() for i in ids)
  assert all(names(i)[0] for i in range(1000))
  assert entries[0] == "n01440764 tench, Tinca tinca"
  assert entries[207] == "n02099601 golden retriever"
  assert entries[360] == "n02444819 otter"
  assert entries[999].startswith("n15075141 toilet tissue, ")


def test_every_synonym_names_its_class_or_is_refused():
  def answer(name):
    try:
      return imagenet(name)
    except ValueError as error:
      return str(error)

  shared = set()
  for i in range(1000):
    for name in names(i):
      found = answer(name)
      if found != [i]:
        assert f"{i} ({classes.imagenet()[i]})" in found
        shared.add(name.lower())
  assert len(shared) == 19
  assert {"crane", "maillot", "cardigan", "panda", "missile"} < shared


def test_ids_and_whole_entries_name_every_class():
  for i, entry in enumerate(classes.imagenet()):
    assert imagenet(entry.split(" ")[0], entry) == [i, i]


@pytest.mark.parametrize(
  "name",
  [
    "golden retriever",
    "Golden Retriever",
    "golden_retriever",
    "golden-retriever",
    "  GOLDEN  retriever\n",
    "n02099601",
    "N02099601",
    "n02099601 golden retriever",
    "207",
    " 207 ",
    "+207",
    207,
    np.int64(207),
    np.uint16(207),
    jnp.asarray(207),
  ],
)
def test_ways_to_say_one_class(name):
  assert imagenet(name) == [207]
  assert classes.resolve(name, classes.imagenet(), 1000) == [207]
  assert type(imagenet(name)[0]) is int


def test_full_stops_and_apostrophes_do_not_matter():
  assert imagenet("St. Bernard", "jack-o-lantern", "rv") == [247, 607, 757]
  assert pets("st bernards", "St. Bernard’s", "dog fish") == [4, 4, 3]


@pytest.mark.parametrize("label", [-1, None, "none", "None", "-1"])
def test_ways_to_say_no_class(label):
  assert pets(label, 1) == [-1, 1]
  assert classes.resolve([label], (), 0) == [-1]


def test_a_class_of_its_own_model_needs_no_id():
  assert pets("Kitty", "cat", "cat, kitty", "cavy", "dog", "dogfish"[:3]) == [
    0,
    0,
    0,
    2,
    1,
    1,
  ]


@pytest.mark.parametrize(
  "labels",
  [
    [1, 0, -1],
    (1, 0, -1),
    np.array([1, 0, -1]),
    np.array([1, 0, -1], np.int8),
    jnp.array([1, 0, -1]),
    ["dog", "cat", "none"],
    np.array(["dog", "cat", "none"]),
    np.array(["dog", 0, None], object),
    ["1", np.int32(0), None],
  ],
)
def test_lists_and_arrays(labels):
  assert classes.resolve(labels, PETS, 5) == [1, 0, -1]


def test_a_range_is_a_list():
  assert classes.resolve(range(5), (), 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    ([10], r"labels \[10\] are not all classes .* 0 \.\. 9, or -1 for no "),
    ([-2], r"labels \[-2\] are not all classes of this model"),
    ([0.5], r"labels \[0\.5\] are not all classes"),
    ([1.0], "not all classes"),
    (0.5, "not all classes"),
    (True, r"labels \[True\] are not all classes"),
    ([True, False], "not all classes"),
    (np.array([True]), "not all classes"),
    ([np.bool_(True)], "not all classes"),
    ([jnp.asarray(True)], "not all classes"),
    (np.array([0.0]), "not all classes"),
    ([b"cat"], "not all classes"),
    (["10"], r"labels \['10'\] are not all classes"),
    ([3, "-2"], r"labels \[3, '-2'\] are not all .* labels\[1\] is '-2'"),
    ([*range(10), 77], r"\[0, 1, 2, 3, 4, 5, \.\.\.\] .* labels\[10\] is 77"),
    ([], "expected a list with one class per image"),
    ((), "expected a list with one class per image"),
    ([[0, 1]], "in a list with one class per image"),
    ([[0], [1]], "in a list with one class per image"),
    ([0, (1,)], "in a list with one class per image"),
    ([np.array([1])], "in a list with one class per image"),
    (np.zeros((2, 2), int), r"shape \(2, 2\); expected a list with one class"),
    (np.zeros(0, int), "expected a list with one class per image"),
    (None, "expected a list with one class per image"),
    (b"cat", "expected a list with one class per image"),
    ({0: 1}, "expected a list with one class per image"),
    ({1}, "expected a list with one class per image"),
    (["cat"], "no names are known .* give integers in 0 .. 9, or -1"),
  ],
)
def test_other_labels_are_one_sentence(labels, message):
  with pytest.raises(ValueError, match=message) as error:
    classes.resolve(labels, (), 10)
  assert str(error.value).endswith(".")
  assert "\n" not in str(error.value)


def test_a_model_without_classes_takes_none():
  with pytest.raises(ValueError, match="expected -1 for no class, because"):
    classes.resolve([0], (), 0)
  with pytest.raises(
    ValueError, match="this model has none; expected none: le"
  ):
    classes.resolve(["cat"], (), 0)


def test_names_of_the_wrong_count_are_refused():
  with pytest.raises(ValueError, match="class_names has 5 entries; expected 6"):
    classes.resolve([0], PETS, 6)


@pytest.mark.parametrize(
  ("name", "near"),
  [
    (
      "retriever",
      "golden retriever (207) or Labrador retriever (208) or flat-coated"
      " retriever (205)?",
    ),
    ("golden retreiver", "did you mean golden retriever (207)?"),
    ("zebr", "did you mean zebra (340)?"),
    ("pizzas", "did you mean pizza (963)?"),
    ("labrador dog", "did you mean Labrador retriever (208)?"),
    ("bird", "indigo bird (14) or snowbird (13)"),
  ],
)
def test_an_unknown_name_is_answered_with_near_ones(name, near):
  with pytest.raises(ValueError, match="names no class of this mod") as error:
    imagenet(0, name)
  assert f"label {name!r} names" in str(error.value)
  assert near in str(error.value)
  assert str(error.value).count(" (") <= 3


@pytest.mark.parametrize("name", ["xyzzy", "", " - ", "n00000000"])
def test_a_name_like_no_other_is_answered_without(name):
  message = "; expected a class name, a WordNet id, integers in 0 .. 999, or -1"
  with pytest.raises(ValueError, match=message):
    imagenet(name)
  with pytest.raises(ValueError, match=r"a class name, integers in 0 \.\. 4"):
    pets(name)


def test_a_shared_name_lists_its_classes():
  with pytest.raises(ValueError, match="'Crane' is the name of 2") as error:
    imagenet("Crane")
  assert "134 (n02012849 crane) and 517 (n03126707 crane)" in str(error.value)
  with pytest.raises(ValueError, match=r"639 \(n03710721 maillot, tank suit\)"):
    imagenet("maillot")
  assert imagenet("maillot, tank suit", "tank suit", "n03710637") == [
    639,
    639,
    638,
  ]


def test_a_number_that_is_another_class_s_name_is_refused():
  assert classes.resolve(["1", "0"], ("0", "1"), 2) == [1, 0]
  with pytest.raises(ValueError, match=r"means class 1, .* of 0 \(1\)"):
    classes.resolve(["1"], ("1", "7"), 2)
  with pytest.raises(ValueError, match=r"means no class, .* of 1 \(None\)"):
    classes.resolve(["none"], ("cat", "None"), 2)


def test_short_names():
  entries = classes.imagenet()
  assert classes.name_of(207, entries) == "golden retriever"
  assert classes.name_of(np.int32(0), entries) == "tench"
  assert classes.name_of(2, PETS) == "guinea pig"
  assert classes.name_of(-1, PETS) == classes.name_of(None, ()) == "none"
  assert classes.name_of(5, PETS) == "5"
  assert classes.name_of(3, ()) == "3"
  assert classes.name_of(0, ("n02099601", "")) == "n02099601"
  assert classes.name_of(1, ("n02099601", "")) == "1"
