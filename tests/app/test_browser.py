"""The page in a browser: what it draws and edits is what Python gives.

A command serves a small release; a headless Chromium uses the page as a person
would. Both are watched: neither may ask for anything beyond this machine.
"""

import ast
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import small
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from marjax.app import painting

ROOT = Path(__file__).parents[2]
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 30

# The command, that writes down whom it looks up or connects to, and when it has
# what it draws. That is so quick that the browser is given a second.
WATCHED = """
import signal, sys, time
# Who starts the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
def watch(event, args):
  if event in ("socket.connect", "socket.getaddrinfo"):
    place = args[1] if event == "socket.connect" else args[:1]
    with open("asked.txt", "a") as file:
      print(repr(place), file=file)
sys.addaudithook(watch)
from marjax.requests import batching
def timed(*args):
  tokens = drawn(*args)
  time.sleep(1)
  with open("drawn.txt", "a") as file:
    print(time.time(), file=file)
  return tokens
drawn, batching.generate = batching.generate, timed
from marjax.__main__ import main
sys.exit(main())
"""

CHROMIUM = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--window-size=1500,1300",
  # The canvas is painted on without a GPU.
  "--enable-unsafe-swiftshader",
]

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="no chromium and chromedriver: apt-get install chromium-driver",
  ),
]


def free_port():
  with socket.socket() as trial:
    trial.bind(("127.0.0.1", 0))
    return trial.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where the command runs: it has a release, and a file that is none."""
  folder = tmp_path_factory.mktemp("app")
  small.save_release(folder / "release")
  (folder / "notes.png").write_text("no picture")
  Image.new("RGB", (30, 20), "red").save(folder / "red.png")
  return folder


@pytest.fixture(scope="module")
def address(folder):
  """Of the page; ended by Ctrl-C, which must not take long."""
  port = free_port()
  argv = ["app", "--checkpoint", "release", "--port", str(port)]
  # A proxy that nobody is at: the page must not be looked for there.
  proxies = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "elsewhere"}
  command = [sys.executable, "-c", WATCHED, *argv]
  environment = os.environ | {"PYTHONPATH": str(ROOT)} | proxies
  out = {"stdout": subprocess.PIPE, "text": True, "cwd": folder}
  with (
    open(folder / "said.txt", "w") as errors,
    subprocess.Popen(command, env=environment, stderr=errors, **out) as served,
  ):
    try:
      lines = [served.stdout.readline() for _ in range(2)]
      assert lines[1:] == [f"http://127.0.0.1:{port} (Ctrl-C ends it)\n"]
      yield f"http://127.0.0.1:{port}"
      served.send_signal(signal.SIGINT)
      assert served.wait(SECONDS) == 130
    finally:
      served.kill()
  said = (folder / "said.txt").read_text()
  assert said.splitlines()[-1] == "marjax: interrupted."


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  options = webdriver.ChromeOptions()
  options.binary_location = BROWSER
  for flag in CHROMIUM:
    options.add_argument(flag)
  profile = tmp_path_factory.mktemp("profile")
  options.add_argument(f"--user-data-dir={profile}")
  options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
  service = webdriver.ChromeService(DRIVER)
  driver = webdriver.Chrome(options, service)
  yield driver
  driver.quit()


def until(browser, question):
  """The first answer that is not nothing."""
  return WebDriverWait(browser, SECONDS, 0.05).until(lambda _: question())


@pytest.fixture
def page(browser, address):
  """The page, as a link to some settings opens it."""
  asked = "label=3&seed=7&num_ar_steps=16&num_head_steps=250&num_images=2"
  browser.get(f"{address}/?{asked}")
  until(browser, lambda: browser.find_elements(By.ID, "draw"))
  until(browser, lambda: value(browser, "seed") == "7")
  return browser


def value(browser, name):
  return browser.find_element(By.CSS_SELECTOR, f"#{name} input").get_property(
    "value"
  )


def click(browser, name):
  browser.find_element(By.ID, name).click()


def code(browser):
  """What the page says in Python, whole: it is drawn anew line by line."""
  script = """return [...document.querySelectorAll('#code .cm-line')]
    .map(line => line.textContent).join('\\n')"""
  return browser.execute_script(script)


# Notes each picture that is shown from now on, and when.
NOTE = """
  const place = () => document.querySelector('#picture img')?.src
  let last = place()
  window.shown = []
  window.covers = []
  const note = () => {
    const bars = [...document.querySelectorAll('#picture .minimal')]
    window.covers.push(...bars.map(
      bar => getComputedStyle(bar).backgroundColor))
    if (place() && place() != last)
      window.shown.push([last = place(), Date.now() / 1000])
  }
  new MutationObserver(note).observe(document.querySelector('#picture'),
    {subtree: true, childList: true, attributes: true})
"""


def draw(browser, button, call):
  """Clicks; pictures that were shown until the code has that call, and when."""
  browser.execute_script(NOTE)
  click(browser, button)
  until(browser, lambda: call in code(browser))
  time.sleep(0.2)
  return browser.execute_script("return window.shown")


def files(browser):
  """Name → pixels of the files that the page offers."""
  places = [
    link.get_attribute("href")
    for link in browser.find_elements(By.CSS_SELECTOR, "#files a")
  ]
  return {place.rpartition("/")[2]: pixels(place) for place in places}


def pixels(place):
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  with opener.open(place) as answer:
    return np.asarray(Image.open(io.BytesIO(answer.read())))


def ran(text, folder):
  """What the code on the page leaves behind, run beside the release."""
  ast.parse(text)
  names = {}
  with contextlib.chdir(folder):
    exec(text, names)
  return names


def wait_for_sentence(browser, words):
  """Until the page says what is wrong."""
  shown = "return document.querySelector('.toast-body')?.textContent"
  until(browser, lambda: words in (browser.execute_script(shown) or ""))


def shown_before_the_end(shown, folder):
  """How many pictures were there when the drawing had not ended yet."""
  end = float((folder / "drawn.txt").read_text().split()[-1])
  return sum(when < end for _, when in shown)


def test_what_is_drawn_is_what_python_gives(page, folder):
  shown = draw(page, "draw", "pipe.generate")
  assert shown_before_the_end(shown, folder) > 2
  covers = page.execute_script("return window.covers")
  assert set(covers) == {"rgba(0, 0, 0, 0)"}  # the bar, which hides nothing
  places = [place for place, _ in shown]
  text = code(page)
  for words in ("3,  # thing 3", "seed=7", "num_images=2", "num_ar_steps=16"):
    assert words in text
  want = ran(text, folder)["images"]
  np.testing.assert_array_equal(pixels(places[-1]), painting.page_of(want))
  assert (pixels(places[0]) != painting.page_of(want)).any()
  offered = files(page)
  assert [*offered] == ["image_0.png", "image_1.png"]
  np.testing.assert_array_equal([*offered.values()], want)
  link = page.find_element(By.CSS_SELECTOR, "#link textarea, #link input")
  link = link.get_property("value")
  assert "label=3&num_images=2&seed=7" in link
  page.get(link)
  until(page, lambda: page.find_elements(By.ID, "draw"))
  until(page, lambda: value(page, "seed") == "7")


def test_an_edit_is_what_python_gives(page, folder):
  reveal = page.find_element(By.CSS_SELECTOR, "input[type=checkbox]")
  reveal.click()
  assert len(draw(page, "draw", "pipe.generate")) == 1
  reveal.click()
  drawn = files(page)["image_0.png"]
  paint(page)
  shown = draw(page, "edit", "pipe.edit")
  assert shown_before_the_end(shown, folder) > 1
  offered = files(page)
  assert [*offered] == ["image.png", "mask.png", "edited_0.png", "edited_1.png"]
  np.testing.assert_array_equal(offered["image.png"], drawn)
  painted = offered["mask.png"] > 0
  assert painted[3:5, 2:6].all()
  assert not painted[[0, -1]].any()
  for name in ("image.png", "mask.png"):
    Image.fromarray(offered[name]).save(folder / name)
  edited = ran(code(page), folder)["edited"]
  np.testing.assert_array_equal(edited.images[0], offered["edited_0.png"])
  np.testing.assert_array_equal(edited.images[1], offered["edited_1.png"])
  assert (edited.mask >= painted).all()


def test_what_goes_wrong_is_a_sentence(page, folder):
  click(page, "edit")
  wait_for_sentence(page, "draw it and take it, or upload one.")
  page.refresh()
  until(page, lambda: page.find_elements(By.ID, "draw"))
  send(page, folder / "notes.png")
  wait_for_sentence(page, "notes.png cannot be read as an image (Unid")


def test_an_upload_is_put_on_the_canvas(page, folder):
  send(page, folder / "red.png")
  time.sleep(2)
  click(page, "edit")
  # It is looked for on a picture only.
  wait_for_sentence(page, "nothing is painted; expected some")


def test_an_upload_has_a_bound(page, folder):
  (folder / "large.png").write_bytes(bytes(21 * 2**20))
  send(page, folder / "large.png")
  wait_for_sentence(page, "maximum")


def test_nothing_beyond_this_machine_is_asked_for(page, address, folder):
  events = [
    json.loads(entry["message"])["message"]
    for entry in page.get_log("performance")
  ]
  asked = [
    event["params"]["request"]["url"]
    for event in events
    if event["method"] == "Network.requestWillBeSent"
  ]
  own = re.compile(rf"(blob:)?{address}/|data:|chrome:|about:")
  assert any(place.startswith(address) for place in asked)
  assert [place for place in asked if not own.match(place)] == []
  lines = (folder / "asked.txt").read_text().splitlines()
  places = {
    place[0]
    for place in map(ast.literal_eval, lines)
    if isinstance(place, tuple)
  }
  assert places <= {"127.0.0.1", "localhost", "::1", "0.0.0.0", None}


def test_the_browser_refuses_other_places(page):
  script = """
    const done = arguments[0]
    document.addEventListener(
      "securitypolicyviolation", event => done(event.blockedURI))
    new Image().src = "http://192.0.2.1/x.png"
  """
  page.set_script_timeout(5)
  assert page.execute_async_script(script) == "http://192.0.2.1/x.png"


def send(browser, path):
  """Uploads a file."""
  place = "input[data-testid$=upload-button]"
  browser.find_element(By.CSS_SELECTOR, place).send_keys(str(path))


def paint(browser):
  """Puts the picture on the canvas, and a stroke across its middle."""
  click(browser, "take")
  time.sleep(2)
  canvas = browser.find_elements(By.CSS_SELECTOR, "#canvas canvas")[-1]
  reach = canvas.size["height"] // 4
  stroke = ActionChains(browser, duration=50)
  stroke.move_to_element_with_offset(canvas, -reach, 0).click_and_hold()
  for x in range(-reach, reach + 1, max(1, reach // 8)):
    stroke.move_to_element_with_offset(canvas, x, 0)
  stroke.release().perform()
  time.sleep(1)
