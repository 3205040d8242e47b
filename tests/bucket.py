"""A bucket of Google Cloud Storage on this machine: the part that marjax uses.

1. The JSON API of storage/v1 over HTTP: objects are put whole, read whole or in
   part, listed, deleted one by one or in a batch, under generation conditions.
2. TensorStore (arrays), gcsfs (small files) and google-cloud-storage (Orbax's
   look at the bucket) all find it through environment variables.
3. `history` has what was in the bucket after each change: setting `objects` to
   an entry is what a kill at that moment leaves behind.
4. `refuse(method, name)` says which requests are answered with the status
   `refusal`; Forbidden, as it is at first, no client retries.
"""

import contextlib
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = "marjax-test"


class Bucket:
  """The objects: name → (generation, content)."""

  def __init__(self):
    self.objects: dict[str, tuple[int, bytes]] = {}
    self.history: list[dict[str, tuple[int, bytes]]] = []
    self.refuse = lambda method, name: False
    self.refusal = 403
    self._generation = 0
    self._lock = threading.Lock()

  def names(self, prefix: str) -> list[str]:
    """Names of the objects below a prefix."""
    return sorted(name for name in self.objects if name.startswith(prefix))

  def put(self, name: str, content: bytes, conditions: dict) -> int:
    """The HTTP status of writing an object."""
    with self._lock:
      if self.refuse("PUT", name):
        return self.refusal
      if not self._holds(name, conditions):
        return 412
      self._generation += 1
      self._change({**self.objects, name: (self._generation, content)})
      return 200

  def delete(self, name: str, conditions: dict) -> int:
    """The HTTP status of deleting an object."""
    with self._lock:
      if name not in self.objects:
        return 404
      if not self._holds(name, conditions):
        return 412
      self._change({k: v for k, v in self.objects.items() if k != name})
      return 204

  def _holds(self, name: str, conditions: dict) -> bool:
    wanted = conditions.get("ifGenerationMatch")
    return wanted is None or int(wanted) == self.objects.get(name, (0,))[0]

  def _change(self, objects: dict) -> None:
    self.objects = objects
    self.history.append(objects)

  def listing(self, query: dict) -> dict:
    """The answer to a list request, in one page."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    items, prefixes = [], set()
    for name in self.names(prefix):
      before, found, _ = name[len(prefix) :].partition(delimiter or "\0")
      if found:
        prefixes.add(prefix + before + delimiter)
      elif query.get("startOffset", "") <= name < query.get("endOffset", "~"):
        items.append(self.resource(name))
    return {"items": items, "prefixes": sorted(prefixes)}

  def resource(self, name: str) -> dict:
    """What the API says of an object."""
    generation, content = self.objects[name]
    return {
      "kind": "storage#object",
      "bucket": NAME,
      "name": name,
      "size": str(len(content)),
      "generation": str(generation),
      "metageneration": "1",
      "contentType": "application/octet-stream",
      "updated": "2026-01-01T00:00:00.000Z",
    }


class Handler(BaseHTTPRequestHandler):
  """HTTP to calls of the server's `bucket`."""

  protocol_version = "HTTP/1.1"
  # Without it each answer waits 40 ms for the client's acknowledgement.
  disable_nagle_algorithm = True

  def do_GET(self):
    """Bucket, listing, an object's resource or its content."""
    path, query = self._request()
    bucket, name = self.server.bucket, self._object(path)
    if bucket.refuse("GET", name or query.get("prefix", "")):
      self._json(bucket.refusal, {})
    elif path.endswith(f"/b/{NAME}"):
      self._json(200, {"kind": "storage#bucket", "name": NAME, "id": NAME})
    elif path.endswith(f"/b/{NAME}/o"):
      self._json(200, bucket.listing(query))
    elif name not in bucket.objects:
      self._json(404, {"error": {"code": 404, "message": f"no {path}"}})
    elif query.get("alt") == "media":
      self._content(*bucket.objects[name], query)
    else:
      self._json(200, bucket.resource(name))

  def do_POST(self):
    """A whole object, or a batch of deletions."""
    path, query = self._request()
    body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    if f"/b/{NAME}/" not in path and "/batch/" not in path:
      self._json(404, {})
      return
    if path == "/batch/storage/v1":
      self._batch(body.decode())
      return
    name = query["name"]
    if query["uploadType"] == "resumable" and "begun" not in query:
      url = f"http://{self.headers['Host']}{self.path}&begun=1"
      self._answer(200, headers={"Location": url})
      return
    if re.search(r"/\*$", self.headers.get("Content-Range", "")):
      self._answer(501, b"an object comes in one piece here")
      return
    status = self.server.bucket.put(name, body, query)
    resource = self.server.bucket.resource(name) if status == 200 else {}
    self._json(status, resource)

  def do_DELETE(self):
    """One object less."""
    path, query = self._request()
    self._answer(self.server.bucket.delete(self._object(path), query))

  def _batch(self, body: str) -> None:
    parts = []
    for path in re.findall(r"^DELETE (\S+)", body, re.MULTILINE):
      name = self._object(urllib.parse.urlsplit(path).path)
      status = self.server.bucket.delete(name, {})
      parts.append(f"--part\r\n\r\nHTTP/1.1 {status} .\r\n\r\n{{}}\r\n")
    text = "".join(parts) + "--part--"
    self._answer(200, text.encode(), {"Content-Type": "multipart; x=part"})

  def _request(self) -> tuple[str, dict]:
    url = urllib.parse.urlsplit(self.path)
    return url.path.rstrip("/"), dict(urllib.parse.parse_qsl(url.query))

  def _object(self, path: str) -> str:
    return urllib.parse.unquote(path.partition(f"/b/{NAME}/o/")[2])

  def _content(self, generation: int, content: bytes, query: dict) -> None:
    headers = {"x-goog-generation": str(generation)}
    if query.get("ifGenerationNotMatch") == str(generation):
      self._answer(304)
      return
    asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
    if not asked:
      self._answer(200, content, headers)
      return
    start = int(asked[1])
    part = content[start : int(asked[2]) + 1 if asked[2] else None]
    where = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
    self._answer(206, part, headers | {"Content-Range": where})

  def _json(self, status: int, answer: dict) -> None:
    content = json.dumps(answer).encode()
    self._answer(status, content, {"Content-Type": "application/json"})

  def _answer(self, status: int, content: bytes = b"", headers=None) -> None:
    self.send_response(status)
    for key, value in (headers or {}).items():
      self.send_header(key, value)
    self.send_header("Content-Length", str(len(content)))
    # A client that asks twice at once hangs up on the second answer.
    with contextlib.suppress(ConnectionError):
      self.end_headers()
      self.wfile.write(content)

  def log_message(self, *_):
    """Nothing: a test's output is its own."""


@contextlib.contextmanager
def serve() -> Iterator[Bucket]:
  """A bucket that gs://marjax-test leads to in this process.

  Clients read where it is once, so a process has one.
  """
  server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.daemon_threads, server.bucket = True, Bucket()
  url = f"http://127.0.0.1:{server.server_port}"
  os.environ |= {
    "STORAGE_EMULATOR_HOST": url,
    "TENSORSTORE_GCS_HTTP_URL": url,
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    "GOOGLE_CLOUD_PROJECT": "none",
    # It asks over gRPC which kind of bucket this is.
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
  }
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server.bucket
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
