"""Loading the compiled libraries, and why one cannot be loaded."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scp_kernels.backends import _libraries
from tests.support.wheels import needs_compiler


class TestLoader:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """An installed package of libraries, empty but for a record that says that the CPU's was built."""
        package = "scp_kernels_native_of_a_test"
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "build.json").write_text('{"cpu": {"built": true}, "cuda": {"built": false, "reason": "no nvcc"}}')
        monkeypatch.setattr(_libraries, "PACKAGE", package)
        monkeypatch.syspath_prepend(tmp_path)
        self.forget()
        yield folder
        self.forget()

    @staticmethod
    def forget() -> None:
        _libraries.build_record.cache_clear()
        _libraries.load.cache_clear()

    @needs_compiler
    def test_library_of_another_abi_is_refused(self, folder: Path) -> None:
        source = folder / "other.cpp"
        source.write_text('extern "C" int scp_abi_version() { return 999; }\n')
        compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
        subprocess.run([compiler, "-shared", "-fPIC", source, "-o", folder / "libscp_cpu.so"], check=True)
        with pytest.raises(
            _libraries.LibraryUnavailable, match=r"ABI version 999, this scp_kernels needs \d+: reinstall"
        ):
            _libraries.load("cpu")

    def test_missing_and_damaged_libraries_are_told_apart(self, folder: Path) -> None:
        with pytest.raises(_libraries.LibraryUnavailable, match="gone from the installation"):
            _libraries.load("cpu")
        (folder / "libscp_cpu.so").write_bytes(b"not a library")
        with pytest.raises(_libraries.LibraryUnavailable, match="does not load"):
            _libraries.load("cpu")

    def test_library_that_was_not_built_gives_the_reason_of_the_record(self, folder: Path) -> None:
        with pytest.raises(_libraries.LibraryUnavailable, match="no nvcc"):
            _libraries.load("cuda")

    def test_sources_alone_say_that_nothing_is_installed(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_libraries, "PACKAGE", "scp_kernels_native_nowhere")
        assert not any(state["built"] for state in _libraries.build_record().values())
        with pytest.raises(_libraries.LibraryUnavailable, match="pip install"):
            _libraries.load("cpu")
