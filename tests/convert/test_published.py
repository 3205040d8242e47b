"""The table of published files."""

import urllib.parse

import pytest

from marjax.convert.published import PUBLISHED, find


def test_every_published_file_is_described():
  assert [*PUBLISHED] == ["kl16", "mar-base", "mar-large", "mar-huge"]
  for name, row in PUBLISHED.items():
    parts = urllib.parse.urlsplit(row.url)
    query = urllib.parse.parse_qs(parts.query)
    assert parts.scheme == "https"
    assert query["dl"] == ["1"], "without it the host sends a web page"
    assert query["rlkey"]
    assert row.name == name
    assert row.licence == "MIT"
  rows = PUBLISHED.values()
  assert len({row.url for row in rows}) == len({row.file_name for row in rows})
  sizes = [row.approximate_bytes for row in rows]
  assert sizes == sorted(sizes)
  # 66 456 019 numbers of four bytes.
  assert sizes[0] == pytest.approx(66_456_019 * 4, rel=0.01)


def test_files_are_found_by_name():
  assert find("mar-base") is PUBLISHED["mar-base"]


@pytest.mark.parametrize(
  ("name", "hint"),
  [
    ("mar-bse", "did you mean mar-base"),
    ("MAR-Large", "did you mean mar-large"),
    ("kl-16", "did you mean kl16"),
    ("zebra", "expected one of kl16, mar-base, mar-large, mar-huge."),
  ],
)
def test_a_slip_of_the_pen_is_mended(name, hint):
  with pytest.raises(
    ValueError, match=f"'{name}' is not a published file.*{hint}"
  ):
    find(name)
