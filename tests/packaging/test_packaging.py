"""What pip builds and installs, in every mode, from a copy of the repository with small kernels in place of csrc/'s.

The kernels are replaced so that a build takes a second or two; the machinery that compiles them is the real one.
"""

import ctypes
import functools
import importlib.metadata
import json
import platform
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scp_kernels import __version__
from scp_kernels.backends import _libraries
from tests.support.processes import run_python
from tests.support.wheels import (
    CUDA,
    ENTRY,
    NATIVE,
    ROOT,
    build_wheel,
    copy_tree,
    metadata_in,
    needs_compiler,
    pip_wheel,
    record_in,
    record_of,
    run,
)

# One process builds the wheel that several tests look at (with pytest-xdist's --dist loadgroup).
pytestmark = pytest.mark.xdist_group("packaging")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_tree(tmp_path / "tree")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a machine with a C++ compiler and without nvcc."""
    return build_wheel(copy_tree(tmp_path_factory.mktemp("wheel") / "tree"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the wheel."""
    target = tmp_path_factory.mktemp("installed")
    result = run("-m", "pip", "install", "--no-deps", "--target", target, wheel, cwd=target)
    assert result.returncode == 0, result.stdout
    return target


@needs_compiler
class TestWheel:
    def test_one_wheel_serves_every_python_of_the_platform(self, wheel: Path) -> None:
        assert re.fullmatch(rf"scp_kernels-{re.escape(__version__)}-py3-none-linux_\w+\.whl", wheel.name)

    def test_holds_every_module_and_data_file_and_nothing_else(self, wheel: Path) -> None:
        def expected(folder: str, package: str, *patterns: str) -> set[str]:
            root = ROOT / folder
            return {f"{package}/{p.relative_to(root).as_posix()}" for pattern in patterns for p in root.rglob(pattern)}

        assert list((ROOT / "models").rglob("*.yaml")) and list((ROOT / "models").rglob("*.html"))
        packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        assert packed == {
            *expected("scp_kernels", "scp_kernels", "*.py", "py.typed"),
            *expected("models/scp_models", "scp_models", "*.py", "py.typed", "*.yaml", "*.html"),
            *(f"{NATIVE}/{name}" for name in ("__init__.py", "build.json", "libscp_cpu.so")),
        }

    def test_records_what_was_built_and_what_was_not(self, wheel: Path) -> None:
        record = record_in(wheel)
        x86 = platform.machine() == "x86_64"
        assert record["cpu"]["built"] is True
        assert record["cpu"]["version"] == __version__
        assert re.search(r"\d+\.\d+", record["cpu"]["compiler"])
        assert list(record["cpu"]["variants"]) == (["portable", "avx2", "avx512"] if x86 else ["portable"])
        assert record["cuda"] == {
            "version": __version__,
            "built": False,
            "reason": "this version has no CUDA kernels",
        }

    def test_is_fit_for_other_machines(self, wheel: Path) -> None:
        flags = json.dumps(record_in(wheel))
        assert "native" not in flags
        assert str(wheel.parent.parent) not in flags

    def test_command_names_a_function(self, wheel: Path) -> None:
        text = zipfile.ZipFile(wheel).read(f"scp_kernels-{__version__}.dist-info/entry_points.txt").decode()
        assert "scp-models = scp_models.cli:main" in text
        cli = pytest.importorskip("scp_models.cli")
        assert callable(cli.main)

    def test_plain_install_needs_torch_only(self, wheel: Path) -> None:
        requirements = [Requirement(text) for text in metadata_in(wheel).get_all("Requires-Dist")]
        assert [r.name for r in requirements if r.marker is None] == ["torch"]
        assert all(r.specifier for r in requirements if r.name != "scp_kernels"), "a dependency has no lower bound"

    def test_nothing_asks_for_torchvision(self, wheel: Path) -> None:
        """Its wheel is a CUDA build that breaks torchmetrics and Lightning on other machines."""
        waiting = [(Requirement(text), "dev") for text in metadata_in(wheel).get_all("Requires-Dist")]
        seen: set[tuple[str, str]] = set()
        while waiting:
            requirement, extra = waiting.pop()
            name = canonicalize_name(requirement.name)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            assert name != "torchvision"
            for wanted in {"", *requirement.extras} - {e for n, e in seen if n == name}:
                seen.add((name, wanted))
                if name == "scp-kernels":
                    required = metadata_in(wheel).get_all("Requires-Dist")
                else:
                    try:
                        required = importlib.metadata.requires(name) or []
                    except importlib.metadata.PackageNotFoundError:
                        continue
                waiting += [(Requirement(text), wanted) for text in required]
        assert {"torch", "monai", "lightning", "matplotlib"} <= {name for name, _ in seen}


@needs_compiler
class TestInstalled:
    def test_every_isa_target_is_compiled_for_its_instructions(self, installed: Path) -> None:
        built = ctypes.CDLL(str(installed / NATIVE / "libscp_cpu.so"))
        vectors = {target: built[f"scp_vectors_{target}"]() for target in record_of(installed)["cpu"]["variants"]}
        expected = {"portable": 0, "avx2": 256, "avx512": 512}
        assert vectors == {target: expected[target] for target in vectors}

    def test_only_marked_functions_are_exported(self, installed: Path) -> None:
        built = ctypes.CDLL(str(installed / NATIVE / "libscp_cpu.so"))
        assert built.scp_threads() >= 1
        assert not hasattr(built, "scp_not_exported")

    def test_checkout_at_the_working_directory_finds_the_library(self, installed: Path, tree: Path) -> None:
        code = (
            "import scp_kernels; from scp_kernels.backends import _libraries as l; "
            "print(scp_kernels.__file__, l.load('cpu')._name, sep='\\n')"
        )
        result = run("-c", code, cwd=tree, PYTHONPATH=str(installed))
        assert result.returncode == 0, result.stdout
        package, loaded = result.stdout.splitlines()[-2:]
        assert Path(package).is_relative_to(tree)
        assert Path(loaded) == installed / NATIVE / "libscp_cpu.so"


class TestWithoutCompiler:
    def test_wheel_is_pure_python_and_says_why(self, tree: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tree / "csrc" / "cuda.cu").write_text(CUDA)
        wheel = build_wheel(tree, PATH=str(tmp_path / "empty"))
        assert wheel.name == f"scp_kernels-{__version__}-py3-none-any.whl"
        assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
        if platform.system() == "Linux":
            assert record_in(wheel)["cpu"]["reason"] == "c++ or g++ or clang++ was not found at install"
            assert record_in(wheel)["cuda"]["reason"] == "nvcc was not found at install"

    @needs_compiler
    def test_compiler_that_cannot_link_counts_as_none(self, tree: Path) -> None:
        broken = tree / "broken-c++"
        broken.write_text("#!/bin/sh\necho 'fatal error: omp.h: No such file or directory'\nexit 1\n")
        broken.chmod(0o755)
        wheel = build_wheel(tree, CXX=str(broken))
        assert wheel.name.endswith("-py3-none-any.whl")
        assert "omp.h: No such file" in record_in(wheel)["cpu"]["reason"]

    @pytest.mark.parametrize(
        ("variable", "compiler"), [("SCP_BUILD_CPU", "CXX"), ("SCP_BUILD_CUDA", "NVCC")], ids=["cpu", "cuda"]
    )
    def test_demanded_library_is_an_error(self, tree: Path, variable: str, compiler: str) -> None:
        (tree / "csrc" / "cuda.cu").write_text(CUDA)
        result = pip_wheel(tree, **{variable: "1", compiler: "no-such-compiler"})
        assert result.returncode != 0
        assert "Traceback" not in result.stdout
        if platform.system() == "Linux":
            assert f"{variable}=1, but {compiler}=no-such-compiler was not found at install" in result.stdout

    def test_misspelt_request_is_an_error(self, tree: Path) -> None:
        result = pip_wheel(tree, SCP_BUILD_CPU="yes")
        assert result.returncode != 0
        assert "SCP_BUILD_CPU: expected auto, 0 or 1, got 'yes'" in result.stdout


@needs_compiler
def test_source_that_does_not_compile_is_an_error_unless_left_out(tree: Path) -> None:
    (tree / "csrc" / "cpu" / "kernels.cpp").write_text("int f() { return undeclared_name; }\n")
    result = pip_wheel(tree)
    assert result.returncode != 0
    assert "undeclared_name" in result.stdout
    assert "SCP_BUILD_CPU=0" in result.stdout
    wheel = build_wheel(tree, SCP_BUILD_CPU="0")
    assert record_in(wheel)["cpu"]["reason"] == "left out at install by SCP_BUILD_CPU=0"


@needs_compiler
def test_rebuild_compiles_what_changed_and_drops_what_is_gone(tree: Path) -> None:
    first = build_wheel(tree)
    assert f"{NATIVE}/libscp_cpu.so" in zipfile.ZipFile(first).namelist()
    objects = {path.name: path.stat().st_mtime_ns for path in (tree / "build" / "native").rglob("*.o")}
    assert len(objects) == 1 + len(record_in(first)["cpu"]["variants"])
    (tree / "csrc" / "cpu" / "entry.cpp").write_text(ENTRY + "SCP_EXPORT int scp_more() { return 2; }\n")
    build_wheel(tree)
    again = {path.name: path.stat().st_mtime_ns for path in (tree / "build" / "native").rglob("*.o")}
    assert {name for name in objects if again[name] != objects[name]} == {"cpu_entry.cpp.o"}

    database = json.loads((tree / "build" / "compile_commands.json").read_text())
    assert len(database) == len(objects)
    assert {Path(entry["file"]) for entry in database} == set((tree / "csrc" / "cpu").glob("*.cpp"))
    assert all(f"-I{tree / 'csrc' / 'include'}" in entry["command"].split() for entry in database)

    first.unlink()
    pure = build_wheel(tree, SCP_BUILD_CPU="0")
    assert f"{NATIVE}/libscp_cpu.so" not in zipfile.ZipFile(pure).namelist()


@pytest.mark.skipif(platform.system() != "Linux" or shutil.which("nvcc") is None, reason="needs nvcc")
def test_cuda_library_is_built_and_loads_without_a_driver(tree: Path) -> None:
    (tree / "csrc" / "cuda.cu").write_text(CUDA)
    wheel = build_wheel(tree, SCP_BUILD_CPU="0", SCP_CUDA_ARCHITECTURES="80")
    assert list(record_in(wheel)["cuda"]["variants"]) == ["80", "ptx"]
    zipfile.ZipFile(wheel).extract(f"{NATIVE}/libscp_cuda.so", tree)
    assert ctypes.CDLL(str(tree / NATIVE / "libscp_cuda.so")).scp_abi_version() == _libraries.ABI_VERSION


@needs_compiler
def test_sdist_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    result = run("-c", "from setuptools import build_meta; build_meta.build_sdist('dist')", cwd=tree)
    assert result.returncode == 0, result.stdout
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        sdist.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for name in (
        "csrc/include/scp.h",
        "csrc/cpu/kernels.cpp",
        "csrc/build_backend.py",
        "csrc/build_description.py",
        "LICENSE",
        "Makefile",
        "models/scp_models/configs/wmh.yaml",
    ):
        assert (unpacked / name).is_file(), name
    rebuilt = build_wheel(unpacked)
    assert rebuilt.name == wheel.name
    assert sorted(zipfile.ZipFile(rebuilt).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@needs_compiler
def test_editable_install_uses_the_sources_and_finds_the_library(tree: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    arguments = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--ignore-installed", "--prefix", prefix)
    result = run(*arguments, "-e", ".", cwd=tree)
    assert result.returncode == 0, result.stdout
    (site_packages,) = {path.parent for path in prefix.rglob("*.pth")}
    # Before the environment's own packages, among which scp_kernels may be installed too.
    code = f"""
import site, sys
before = list(sys.path)
site.addsitedir({str(site_packages)!r})
sys.path[:] = [p for p in sys.path if p not in before] + before
sys.meta_path.sort(key=lambda finder: 'Editable' not in getattr(finder, '__name__', ''))
import scp_kernels, scp_models
from scp_kernels.backends import _libraries
print(scp_kernels.__file__, scp_models.__file__, _libraries.load('cpu')._name, sep='\\n')
"""
    result = run("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    kernels, models, loaded = (Path(line) for line in result.stdout.splitlines()[-3:])
    assert kernels == tree / "scp_kernels" / "__init__.py"
    assert models == tree / "models" / "scp_models" / "__init__.py"
    assert loaded == tree / "csrc" / NATIVE / "libscp_cpu.so"


@functools.cache
def imported_by_scp_kernels() -> tuple[set[str], list[str]]:
    """Modules in memory after ``import scp_kernels``, and the programs started and libraries loaded meanwhile."""
    code = """
import json, sys
import torch
events = []
def hook(event, arguments):
    if event in ('subprocess.Popen', 'os.posix_spawn', 'os.exec', 'os.fork', 'os.system'):
        events.append(f'{event} {arguments[0] if arguments else ""}')
    elif event == 'ctypes.dlopen' and arguments[0] is not None:
        events.append(f'{event} {arguments[0]}')
sys.addaudithook(hook)
import scp_kernels
assert not torch.cuda.is_initialized()
print(json.dumps([sorted(sys.modules), events]))
"""
    modules, events = json.loads(run_python("-c", code).stdout.splitlines()[-1])
    return set(modules), events


def test_importing_scp_kernels_brings_torch_and_nothing_of_the_training() -> None:
    modules, _ = imported_by_scp_kernels()
    assert {"torch", "scp_kernels"} <= modules
    heavy = {"monai", "lightning", "nibabel", "matplotlib", "torchmetrics", "pandas", "scipy", "rich", "scp_models"}
    assert not heavy & {name.split(".")[0] for name in modules}


def test_importing_scp_kernels_starts_no_program_and_loads_no_library() -> None:
    _, events = imported_by_scp_kernels()
    assert events == []


def test_changelog_has_an_entry_for_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert __version__ in headings
