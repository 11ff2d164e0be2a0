"""Tests and benchmarks import what is installed, as a user's Python does in any other folder than the checkout."""

import importlib
import json
import re
import subprocess
import sys

import pytest

from tests.support.processes import ROOT, run_python

PACKAGES = ("scp_kernels", "scp_models", "scp_kernels_native")
ASK = f"import importlib, json; print(json.dumps([importlib.import_module(n).__file__ for n in {PACKAGES}]))"


def files_here() -> list[str | None]:
    return [importlib.import_module(name).__file__ for name in PACKAGES]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str | None]:
    """Where a user's Python finds the packages."""
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, cwd=tmp_path_factory.mktemp("elsewhere"), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_these_tests_import_what_is_installed(files):
    assert files_here() == files, "the checkout is before the installed packages: run `pytest`, not `python -m pytest`"


def test_processes_of_tests_import_what_is_installed(files):
    assert json.loads(run_python("-c", ASK).stdout) == files


FRESH = f"""
import json, os, sys
sys.path.remove("")  # the working directory
os.chdir({str(ROOT)!r})
from benchmarks.fresh import FreshProcesses
from tests.packaging.test_imports import files_here
fresh = FreshProcesses("scp_kernels")
print(json.dumps(fresh(files_here)))
fresh.close()
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a fork server looks into the working directory before 3.11")
def test_fresh_processes_of_benchmarks_import_what_is_installed(files):
    done = run_python("-c", FRESH)
    assert json.loads(done.stdout) == files


def test_pytest_puts_a_checkout_behind_what_is_installed(tmp_path):
    """With this project's settings, in another checkout whose ``scp_kernels`` must not be found."""
    (settings,) = re.findall(r"^\[tool\.pytest\..*?(?=^\[|\Z)", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    (tmp_path / "pyproject.toml").write_text(settings)
    for folder in ("scp_kernels", "checks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "checks" / "helper.py").write_text("")
    (tmp_path / "checks" / "test_where.py").write_text(
        "import checks.helper\nimport scp_kernels\n"
        f"def test_where(): assert not scp_kernels.__file__.startswith({str(tmp_path)!r})\n"
    )
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path / "checks")
    assert "1 passed" in done.stdout, done.stdout
