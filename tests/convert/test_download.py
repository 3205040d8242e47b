"""Downloads, from a server that misbehaves in every way that servers do."""

import dataclasses

import pytest
from convert.weights_server import (
  CONTENT,
  CUT,
  ONCE,
  OTHER,
  OVERLAP,
  QUICK,
  Answer,
  fails,
  get,
  ranges,
  resumed_at,
)

from marjax.convert.download import DownloadError, fetch

ZEROS = bytes(len(CONTENT))

HASTY = dataclasses.replace(QUICK, stall_seconds=1.0)


def test_a_file_is_downloaded(server, path):
  assert get(server, path) == CONTENT
  assert server.requests[0]["User-Agent"].startswith("marjax/")
  assert ranges(server) == [None]


def test_redirects_are_followed(server, path):
  hops = [Answer(status=302, location=f"/{i}", content=b"<html>") for i in "ab"]
  server.answer(*hops, Answer())
  assert get(server, path) == CONTENT
  server.answer(hops[0])
  fails(server, path.with_name("b"), "redirects")
  for place in ("file:///etc/passwd", "ftp://127.0.0.1/a"):
    server.answer(Answer(status=302, location=place))
    fails(server, path.with_name("b"), "cannot be downloaded .*adapters")


@pytest.mark.parametrize(
  "about",
  [
    {},
    {"etag": 'W/"weak"'},
    {"etag": None, "date": "Sat, 01 Jun 2024 00:00:00 GMT"},
    {"etag": None},
  ],
)
def test_a_body_that_breaks_off_is_gone_on_with(server, path, about):
  server.answer(Answer(cut=CUT, **about), Answer(**about))
  assert get(server, path) == CONTENT
  assert ranges(server) == [None, resumed_at(CUT)]
  # A weak tag there would ask for the whole file.
  same = server.requests[1].get("If-Range")
  assert same == (about.get("date") or (None if about else '"one"'))


def test_a_body_that_stalls_is_gone_on_with(server, path):
  # The server stalls for good, so that it ends says that a request was left.
  server.answer(Answer(cut=CUT, stalls=True), Answer())
  patience = dataclasses.replace(HASTY, num_tries=1000)
  assert get(server, path, patience) == CONTENT
  # On a slow machine the second request may seem to stall as well.
  assert ranges(server)[:2] == [None, resumed_at(CUT)]


def test_a_server_that_says_nothing_is_left(server, path):
  server.answer(Answer(silence=True))
  fails(server, path, "run again", dataclasses.replace(HASTY, num_tries=1))


def test_a_bad_line_is_enough(server, path):
  server.answer(Answer(cut=2 * OVERLAP))
  assert get(server, path) == CONTENT
  assert len(server.requests) > QUICK.num_tries


def test_tries_that_bring_nothing_end(server, path):
  server.answer(Answer(cut=CUT), Answer(cut=100))
  fails(server, path, "cannot be downloaded .*run again, it goes on where")
  assert len(server.requests) == QUICK.num_tries
  server.answer(Answer())
  assert get(server, path) == CONTENT
  assert ranges(server)[-1] == resumed_at(CUT)


def test_a_whole_part_is_taken(server, path):
  server.answer(Answer(cut=CUT))
  fails(server, path, "run again", ONCE)
  path.with_name("file.pth.part").write_bytes(CONTENT)
  server.answer(Answer())
  assert get(server, path) == CONTENT
  assert ranges(server)[-1] == resumed_at(len(CONTENT))


@pytest.mark.parametrize(
  ("before", "after", "num_requests"),
  [
    ({}, {"knows_ranges": False}, 2),
    ({}, {"content": OTHER, "etag": '"two"'}, 2),
    ({}, {"content": OTHER, "etag": '"two"', "knows_if_range": False}, 3),
    ({"etag": None, "date": "a"}, {"content": OTHER, "date": "b"}, 2),
    ({"etag": None}, {"content": OTHER, "etag": None}, 3),  # by the overlap
    ({"etag": None}, {"content": OTHER[:CUT], "etag": None}, 3),
    ({"etag": None}, {"content": CONTENT + b"+", "etag": None}, 3),
    ({"etag": None}, {"content": OTHER[:1000], "etag": None}, 3),  # 416
    ({"content": ZEROS}, {"content": ZEROS, "shift": 64}, 3),
    ({"content": ZEROS}, {"content": ZEROS, "shift": -64}, 3),
    ({}, {"extra": b"more"}, 3),
  ],
)
def test_no_bytes_of_two_files_are_mixed(
  server, path, before, after, num_requests
):
  server.answer(Answer(cut=CUT, **before), Answer(**after))
  assert get(server, path) == after.get("content", CONTENT)
  assert len(server.requests) == num_requests


@pytest.mark.parametrize("note", [None, "{", "[]", '{"url": "x"}'])
def test_a_part_of_unknown_origin_is_dropped(server, path, note):
  path.parent.mkdir()
  path.with_name("file.pth.part").write_bytes(OTHER[:CUT])
  if note:
    path.with_name("file.pth.part.json").write_text(note)
  assert get(server, path) == CONTENT
  assert ranges(server) == [None]


def test_a_part_of_another_address_is_dropped(server, path):
  server.answer(Answer(OTHER, cut=CUT))
  fails(server, path, "run again", ONCE)
  server.url += "&other"
  server.answer(Answer())
  assert get(server, path) == CONTENT
  assert ranges(server) == [None, None]


@pytest.mark.parametrize(
  ("status", "match", "num_requests"),
  [
    (404, "HTTP 404.*check the address", 1),
    (403, "HTTP 403.*in a browser", 1),
    (503, "HTTP 503.*run again", QUICK.num_tries),
    (204, "HTTP 204", 1),
  ],
)
def test_refusals_are_explained(server, path, status, match, num_requests):
  server.answer(Answer(b"", status, length=0))
  fails(server, path, match)
  assert len(server.requests) == num_requests


def test_a_busy_server_is_asked_again(server, path):
  server.answer(Answer(b"busy", 503), Answer())
  assert get(server, path) == CONTENT


@pytest.mark.parametrize("start", [b"<!DOCTYPE html>", b"\n\n  <html>"])
def test_a_web_page_is_no_file(server, path, start):
  server.answer(Answer(start + b"<p>Sign in" * 999))
  fails(server, path, "is a web page.*dl=1")
  server.answer(Answer())
  assert get(server, path) == CONTENT


def test_a_length_is_not_needed(server, path):
  server.answer(Answer(length="none"))
  assert get(server, path) == CONTENT


def test_wrong_lengths_are_noticed(server, path):
  server.answer(Answer(length=len(CONTENT) + 1))
  fails(server, path, "700000 bytes read, 1 more expected")
  server.answer(Answer(b""))
  fails(server, path, "has 0 bytes; expected some")


def test_a_file_that_is_there_is_kept(server, path):
  path.parent.mkdir()
  path.write_bytes(b"precious")
  assert get(server, path) == b"precious"
  path.write_bytes(b"<html>")
  with pytest.raises(DownloadError, match=r"file.pth is a web page"):
    fetch(server.url, path)
  with pytest.raises(IsADirectoryError, match="is a folder; expected"):
    fetch(server.url, path.parent)
  assert server.requests == []


def test_addresses_are_of_the_web(path):
  for url in ("ftp://a/b", "file:///etc/passwd", "a/b", ""):
    with pytest.raises(ValueError, match="expected an address that starts"):
      fetch(url, path)
  assert not path.parent.exists()


def test_a_machine_that_does_not_answer_is_named(server, path):
  server.url = "http://127.0.0.1:9/a"
  fails(server, path, "127.0.0.1:9/a cannot be downloaded .*network")


def test_certificates_that_are_not_there_are_named(server, path, monkeypatch):
  monkeypatch.setenv("CURL_CA_BUNDLE", "/absent.pem")
  server.url = server.url.replace("http:", "https:")
  fails(server, path, "/absent.pem.*set SSL_CERT_FILE")


def test_a_place_that_cannot_be_written_is_named(server, path):
  path.parent.write_text("a file")
  fails(server, path, "file.pth cannot be written .*folder")
