"""Builds ``csrc/`` into plain shared libraries with a C ABI, loaded by ctypes: no torch, one binary for every Python.

``csrc/build_description.py`` says what is built; this file, how. The libraries go into the package
``scp_kernels_native``, beside ``build.json``, which says for each what was built, or why it was not;
``python -m scp_kernels`` shows it. Environment variables:

``SCP_BUILD_CPU``, ``SCP_BUILD_CUDA``
    ``auto`` (the default: build if a working compiler is found), ``0`` (do not), ``1`` (an error if it cannot be).
``CXX``, ``NVCC``
    The compilers, if not ``c++``/``g++``/``clang++`` and ``nvcc`` on the path.
``SCP_CUDA_ARCHITECTURES``
    Semicolon-separated compute capabilities, as in ``80;90``; the oldest is built as PTX too, for all that are newer.
"""

import ast
import json
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

from csrc.build_description import (
    CSRC,
    CUDA,
    CUDA_ARCHITECTURES,
    INCLUDE_FLAGS,
    LIBRARIES,
    PACKAGE,
    Library,
    architecture_flags,
    isa_target_flags,
)

ROOT = Path(__file__).resolve().parent


@dataclass
class LibraryBuild:
    """How one library is built on this machine, or why it is not."""

    library: Library
    reason: str | None = None
    """Why it is not built; None if it is."""
    compiler: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    variants: dict[str, list[str]] = field(default_factory=dict)
    """ISA targets or compute capabilities, and the flags of each."""

    def objects(self) -> list[tuple[Path, str, list[str]]]:
        """Source, suffix of the object file, and extra flags of every compilation."""
        once: list[tuple[Path, str, list[str]]] = [
            (source, "", []) for source in self.library.sources if source not in self.library.per_isa_target
        ]
        repeated = [
            (source, target, isa_target_flags(target))
            for source in self.library.per_isa_target
            for target in self.library.isa_targets
        ]
        return [*repeated, *once]

    def record(self) -> dict:
        record = {"version": package_version(), "built": self.reason is None}
        if self.reason is not None:
            return {**record, "reason": self.reason}
        return {**record, "compiler": version_of(self.compiler), "flags": self.flags, "variants": self.variants}


def package_version() -> str:
    """``__version__`` of scp_kernels/version.py, read without importing scp_kernels (which imports torch)."""
    tree = ast.parse((ROOT / "scp_kernels" / "version.py").read_text())
    return next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))


def version_of(compiler: list[str]) -> str:
    lines = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout.strip().splitlines()
    return next((line for line in lines if "release" in line), lines[0] if lines else shlex.join(compiler))


def find_compiler(variable: str, *names: str) -> tuple[list[str], str | None]:
    """The command, or why there is none. A compiler that the user names is the only candidate."""
    if chosen := shlex.split(os.environ.get(variable, "")):
        compiler = shutil.which(chosen[0])
        return ([compiler, *chosen[1:]], None) if compiler else ([], f"{variable}={chosen[0]} was not found at install")
    compiler = next((path for name in names if (path := shutil.which(name))), None)
    return ([compiler], None) if compiler else ([], f"{' or '.join(names)} was not found at install")


def probe(compiler: list[str], flags: list[str], source: str, suffix: str) -> str | None:
    """Why the compiler cannot make a shared library at all (no headers, no OpenMP, no host compiler …), or None.

    Only then is a library left out: if this works and ``csrc/`` does not compile, that is an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"probe{suffix}"
        path.write_text(source)
        command = [*compiler, *flags, str(path), "-o", str(path.with_suffix(".so"))]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode == 0:
        return None
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    message = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
    return f"{shlex.join(compiler)} failed on a trivial program at install: {message.strip()}"


def knows(compiler: list[str], flag: str) -> bool:
    return probe(compiler, [flag, "-Werror", "-c"], "int scp_probe;\n", ".cpp") is None


def find_ninja() -> str | None:
    try:
        import ninja  # the build requirement brings its own binary, which need not be on the path
    except ImportError:
        return shutil.which("ninja")
    path = Path(ninja.BIN_DIR) / "ninja"
    return str(path) if path.exists() else shutil.which("ninja")


def configure() -> list[LibraryBuild]:
    """What will be built, decided before anything runs: the wheel's tag depends on it."""
    return [configure_library(library) for library in LIBRARIES]


def configure_library(library: Library) -> LibraryBuild:
    variable = library.request_variable
    request = os.environ.get(variable, "auto")
    if request not in ("auto", "0", "1"):
        raise SystemExit(f"{variable}: expected auto, 0 or 1, got {request!r}")
    if request == "0":
        return LibraryBuild(library, f"left out at install by {variable}=0")
    result = find_tools(library)
    if result.reason is None:
        if library is CUDA:
            result.variants = architecture_flags(capabilities(result.compiler))
            # One command compiles for all architectures.
            result.flags += [flag for flags in result.variants.values() for flag in flags]
        else:
            result.variants = library.isa_targets
    elif request == "1":
        raise SystemExit(f"{variable}=1, but {result.reason}")
    return result


def find_tools(library: Library) -> LibraryBuild:
    """The compiler and the flags that it knows, or what is missing."""
    if platform.system() != "Linux":
        return LibraryBuild(library, f"csrc/ is compiled on Linux only, and this is {platform.system()}")
    if not library.sources:
        return LibraryBuild(library, f"this version has no {library.name.upper()} kernels")
    compiler, reason = find_compiler(library.variable, *library.compilers)
    suffix = library.sources[0].suffix
    reason = reason or probe(compiler, [*library.flags, *library.link_flags], library.probe, suffix)
    if reason is None and find_ninja() is None:
        reason = "ninja was not found at install"
    if reason is not None:
        return LibraryBuild(library, reason)
    flags = [*library.flags, *(flag for flag in library.tuning_flags if knows(compiler, flag))]
    return LibraryBuild(library, None, compiler, flags)


def capabilities(nvcc: list[str]) -> list[str]:
    """The compute capabilities to compile for, the oldest first."""
    listed = subprocess.run([*nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    known = {architecture.removeprefix("compute_") for architecture in listed}
    if chosen := os.environ.get("SCP_CUDA_ARCHITECTURES"):
        result = sorted(chosen.split(";"), key=lambda c: (len(c), c))
        if unknown := [c for c in result if c.rstrip("af") not in known]:
            raise SystemExit(f"SCP_CUDA_ARCHITECTURES: nvcc does not compile for {unknown}; it knows {sorted(known)}")
        return result
    return [c for c in CUDA_ARCHITECTURES if c in known]


def ninja_file(builds: list[LibraryBuild], objects_dir: Path, out: Path) -> str:
    """The text of ``build.ninja``; dependencies on headers are found by the compilers."""

    def quoted(path: Path | str) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def shell(arguments: list[str]) -> str:
        return shlex.join(arguments).replace("$", "$$")

    lines = ["ninja_required_version = 1.5", ""]
    for item in builds:
        library, name = item.library, item.library.name
        lines += [
            f"rule compile_{name}",
            f"  command = {shell([*item.compiler, *item.flags, *INCLUDE_FLAGS])} $extra -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            f"  description = {name}: $in $extra",
            f"rule link_{name}",
            f"  command = {shell(item.compiler)} $in {shell([*library.link_flags])} -o $out",
            f"  description = {name}: $out",
        ]
        compiled = []
        for source, suffix, extra in item.objects():
            relative = source.relative_to(CSRC).as_posix().replace("/", "_")
            target = objects_dir / name / f"{relative}{'.' + suffix if suffix else ''}.o"
            compiled.append(quoted(target))
            lines += [f"build {quoted(target)}: compile_{name} {quoted(source)}", f"  extra = {shell(extra)}"]
        lines += [f"build {quoted(out / library.file_name)}: link_{name} {' '.join(compiled)}", ""]
    return "\n".join(lines) + "\n"


class BuildNative(Command):
    """Compile ``csrc/`` and write the build record."""

    description = "compile csrc/ into shared libraries"
    user_options: ClassVar[list] = []
    editable_mode = False
    build_lib: str
    build_base: str

    def initialize_options(self) -> None:
        self.build_lib = None  # type: ignore[assignment]
        self.build_base = None  # type: ignore[assignment]

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"), ("build_base", "build_base"))

    @property
    def out(self) -> Path:
        """Where the package lies: in an editable install, that is the folder of the sources."""
        return CSRC / PACKAGE if self.editable_mode else (Path(self.build_lib) / PACKAGE).resolve()

    def run(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        builds = self.distribution.library_builds
        for item in builds:
            # What an earlier build left must not travel in this one.
            (self.out / item.library.file_name).unlink(missing_ok=True)
        if wanted := [item for item in builds if item.reason is None]:
            self.compile(wanted)
        record = {item.library.name: item.record() for item in builds}
        (self.out / "build.json").write_text(json.dumps(record, indent=2) + "\n")

    def compile(self, builds: list[LibraryBuild]) -> None:
        # Objects stay here between builds, whatever their mode: a developer's rebuild compiles what changed.
        build_base = Path(self.build_base).resolve()
        objects_dir = build_base / "native"
        objects_dir.mkdir(parents=True, exist_ok=True)
        (objects_dir / "build.ninja").write_text(ninja_file(builds, objects_dir, self.out))
        program = find_ninja()
        assert program is not None  # without it nothing is built
        ninja = [program, "-C", str(objects_dir)]
        # clangd looks into the folder build/ of each folder above a source.
        rules = [f"compile_{item.library.name}" for item in builds]
        database = subprocess.run([*ninja, "-t", "compdb", *rules], check=True, capture_output=True, text=True).stdout
        (build_base / "compile_commands.json").write_text(database)
        result = subprocess.run(ninja, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(result.stdout, flush=True)
        if result.returncode:
            skipping = " ".join(f"{item.library.request_variable}=0" for item in builds)
            raise SystemExit(f"csrc/ does not compile (the compiler's message is above); {skipping} installs without")

    def get_outputs(self) -> list[str]:
        built = [item.library.file_name for item in self.distribution.library_builds if item.reason is None]
        return [str(self.out / name) for name in (*built, "build.json")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in sorted(CSRC.rglob("*")) if p.suffix in {".h", ".cuh", ".cpp", ".cu"}]


class CleanBuild(build):
    """Starts from an empty build tree, so that nothing stale gets into a wheel."""

    sub_commands: ClassVar[list] = [*build.sub_commands, ("build_native", None)]

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class PlatformWheel(bdist_wheel):
    """The libraries know nothing of CPython's ABI: one wheel serves every Python 3 of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform_tag = super().get_tag()
        return ("py3", "none", "any" if self.root_is_pure else platform_tag)


class NativeDistribution(Distribution):
    """Platform-specific exactly if something is compiled."""

    @property
    def library_builds(self) -> list[LibraryBuild]:
        if not hasattr(self, "_library_builds"):
            self._library_builds = configure()
        return self._library_builds

    def has_ext_modules(self) -> bool:
        return any(item.reason is None for item in self.library_builds)


setup(
    distclass=NativeDistribution,
    cmdclass={"build": CleanBuild, "build_native": BuildNative, "bdist_wheel": PlatformWheel},
    # The folder of compiled libraries has a name that no checkout shadows.
    packages=[
        *find_packages(str(ROOT), include=["scp_kernels", "scp_kernels.*"]),
        PACKAGE,
        *find_packages(str(ROOT / "models")),
    ],
    package_dir={"scp_kernels": "scp_kernels", PACKAGE: f"csrc/{PACKAGE}", "scp_models": "models/scp_models"},
)
