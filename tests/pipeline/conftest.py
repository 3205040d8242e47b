"""A released model, for the tests of what can become of one."""

import shutil

import pytest
import small


@pytest.fixture(scope="module")
def release(tmp_path_factory):
  return small.save_release(tmp_path_factory.mktemp("release") / "small")


@pytest.fixture
def copy(release, tmp_path):
  return shutil.copytree(release, tmp_path / "copy")
