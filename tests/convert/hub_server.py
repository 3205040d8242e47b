"""A Hub on this machine, for what huggingface_hub asks of one.

python -m tests.convert.hub_server    until Ctrl-C; says how to use it
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import threading
import urllib.parse


@dataclasses.dataclass
class Repo:
  """Branches, each a list of commits; a commit is its files by name."""

  is_private: bool = False
  branches: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    self.commit("main", {})

  def commit(self, branch: str, files: dict[str, bytes]) -> str:
    """Adds a commit; its name."""
    history = self.branches.setdefault(branch, [])
    text = repr((branch, len(history), sorted(files)))
    name = hashlib.sha1(text.encode()).hexdigest()
    self.commits[name] = files
    history.append(name)
    return name

  def resolve(self, revision: str) -> str | None:
    """The commit of a branch or a commit."""
    if revision in self.branches:
      return self.branches[revision][-1]
    return revision if revision in self.commits else None


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers as the Hub does, for what a release needs."""

  protocol_version = "HTTP/1.1"

  def log_message(self, *args):
    """Says nothing."""

  def answer(self, status: int, body=b"", **headers) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)

  def body(self) -> bytes:
    if self.headers.get("Transfer-Encoding") != "chunked":
      return self.rfile.read(int(self.headers.get("Content-Length", 0)))
    content = b""
    while size := int(self.rfile.readline(), 16):
      content += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return content

  def missing(self, code: str) -> None:
    self.answer(404, {"error": code}, X_Error_Code=code)

  def handle_request(self) -> None:
    path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
    self.server.requests.append((self.command, path))
    content = self.body()
    may_write = self.headers.get("Authorization") == "Bearer may-write"
    if self.command == "POST" and not may_write:
      self.answer(401, {"error": "no token"})
      return
    for pattern, method in ROUTES.items():
      if found := re.fullmatch(pattern, path):
        method(self, content, *found.groups())
        return
    self.answer(404, {"error": path})

  do_GET = do_HEAD = do_POST = do_PUT = handle_request

  def create(self, content: bytes) -> None:
    asked = json.loads(content)
    name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
    url = f"{self.server.url}/{name}"
    if name in self.server.repos:
      self.answer(409, {"url": url, "error": "it exists"})
      return
    self.server.repos[name] = Repo(asked.get("visibility") == "private")
    self.answer(200, {"url": url, "name": name})

  def branch(self, content: bytes, repo: str, branch: str) -> None:
    found = self.server.repos[repo]
    if branch in found.branches:
      self.answer(409, {"error": "it exists"})
      return
    found.commit(branch, found.commits[found.resolve("main")])
    self.answer(200, {})

  def preupload(self, content: bytes, repo: str, branch: str) -> None:
    names = [file["path"] for file in json.loads(content)["files"]]
    files = [
      {
        "path": name,
        "uploadMode": "lfs" if name.endswith("safetensors") else "regular",
        "shouldIgnore": False,
        "oid": None,
      }
      for name in names
    ]
    self.answer(200, {"files": files})

  def batch(self, content: bytes, repo: str) -> None:
    objects = [
      {
        **each,
        "actions": {"upload": {"href": f"{self.server.url}/put/{each['oid']}"}},
      }
      for each in json.loads(content)["objects"]
    ]
    self.answer(200, {"transfer": "basic", "objects": objects})

  def put(self, content: bytes, oid: str) -> None:
    assert hashlib.sha256(content).hexdigest() == oid
    self.server.objects[oid] = content
    self.answer(200)

  def commit(self, content: bytes, repo: str, branch: str) -> None:
    found = self.server.repos[repo]
    files = dict(found.commits[found.resolve(branch)])
    for line in content.splitlines():
      entry = json.loads(line)
      value = entry["value"]
      if entry["key"] == "file":
        files[value["path"]] = base64.b64decode(value["content"])
      elif entry["key"] == "lfsFile":
        files[value["path"]] = self.server.objects[value["oid"]]
      elif entry["key"] == "deletedFile":
        del files[value["path"]]
    name = found.commit(branch, files)
    url = f"{self.server.url}/{repo}/commit/{name}"
    self.answer(200, {"success": True, "commitOid": name, "commitUrl": url})

  def found(self, repo: str, revision: str) -> tuple[str, dict] | None:
    """The commit and its files; else it has answered that there is none."""
    if repo not in self.server.repos:
      self.missing("RepoNotFound")
      return None
    found = self.server.repos[repo]
    name = found.resolve(revision)
    if name is None:
      self.missing("RevisionNotFound")
      return None
    return name, found.commits[name]

  def revision(self, content: bytes, repo: str, revision: str = "main") -> None:
    if found := self.found(repo, revision):
      name, files = found
      siblings = [{"rfilename": file} for file in files]
      self.answer(200, {"id": repo, "sha": name, "siblings": siblings})

  def tree(self, content: bytes, repo: str, revision: str) -> None:
    if found := self.found(repo, revision):
      entries = [
        {"type": "file", "path": file, "size": len(data), "oid": _oid(data)}
        for file, data in found[1].items()
      ]
      self.answer(200, entries)

  def file(self, content: bytes, repo: str, revision: str, file: str) -> None:
    if not (found := self.found(repo, revision)):
      return
    name, files = found
    if file not in files:
      self.missing("EntryNotFound")
      return
    etag = f'"{_oid(files[file])}"'
    self.answer(200, files[file], ETag=etag, X_Repo_Commit=name)

  def validate(self, content: bytes) -> None:
    self.answer(200, {"errors": [], "warnings": []})


def _oid(content: bytes) -> str:
  return hashlib.sha1(content).hexdigest()


ROUTES = {
  "/api/repos/create": Handler.create,
  "/api/validate-yaml": Handler.validate,
  "/api/models/([^/]+/[^/]+)/branch/(.+)": Handler.branch,
  "/api/models/([^/]+/[^/]+)/preupload/(.+)": Handler.preupload,
  "/api/models/([^/]+/[^/]+)/commit/(.+)": Handler.commit,
  "/api/models/([^/]+/[^/]+)/revision/(.+)": Handler.revision,
  "/api/models/([^/]+/[^/]+)/tree/(.+)": Handler.tree,
  "/api/models/([^/]+/[^/]+)": Handler.revision,
  "/([^/]+/[^/]+).git/info/lfs/objects/batch": Handler.batch,
  "/put/(.+)": Handler.put,
  "/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": Handler.file,
}


@contextlib.contextmanager
def running():
  """The server; `url`, `repos` and `requests` are its attributes."""
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.url = f"http://127.0.0.1:{server.server_port}"
  server.repos, server.objects, server.requests = {}, {}, []
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


if __name__ == "__main__":
  with running() as hub, contextlib.suppress(KeyboardInterrupt):
    # Its uploads are those of before xet, and of anyone with this token.
    tokens = "HF_TOKEN=may-write HF_HUB_DISABLE_XET=1"
    print(f"export HF_ENDPOINT={hub.url} {tokens}", flush=True)
    threading.Event().wait()
