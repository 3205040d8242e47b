"""Which images are drawn while training."""

from marjax.train.samples import sample_labels


def test_each_column_is_a_class():
  assert sample_labels(10) == [*range(10)] * 2


def test_many_classes_are_sampled_evenly():
  assert sample_labels(1000)[:10] == list(range(0, 1000, 100))


def test_few_classes_take_turns():
  assert sample_labels(2)[:4] == [0, 1, 0, 1]


def test_a_model_without_classes_draws_without():
  assert set(sample_labels(0)) == {-1}
