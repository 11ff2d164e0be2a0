"""Every module of the benchmarks can be imported: most run only when somebody asks for them."""

import importlib
from pathlib import Path

import pytest

import benchmarks

FOLDER = Path(benchmarks.__file__).parent


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_imports(name):
    importlib.import_module(f"benchmarks.{name}" if name != "__init__" else "benchmarks")
