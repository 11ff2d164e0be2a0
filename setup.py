"""Builds ``csrc/`` into plain shared libraries with a C ABI, loaded by ctypes: no torch, one binary for every Python.

What is built goes into the package ``scp_kernels_native``, beside ``build.json``, which says for each library what was
built, or why it was not; ``python -m scp_kernels`` shows it. Environment variables:

``SCP_BUILD_CPU``, ``SCP_BUILD_CUDA``
    ``auto`` (the default: build if a compiler is found), ``0`` (do not), ``1`` (an error if it cannot be).
``CXX``, ``NVCC``
    The compilers, if not ``c++``/``g++``/``clang++`` and ``nvcc`` on the path.
``SCP_CUDA_ARCHITECTURES``
    Semicolon-separated compute capabilities; the newest is built as PTX too.
"""

import json
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
PACKAGE = "scp_kernels_native"

CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra"]
LINK_FLAGS = ["-shared", "-fopenmp"]
# One source, compiled once for each vector level; the best one is picked when the library is loaded.
VECTOR_LEVELS = {
    "x86_64": {
        "portable": [],
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c"],
    }
}
VECTOR_LEVELS["AMD64"] = VECTOR_LEVELS["x86_64"]
CUDA_ARCHITECTURES = "75;80;86;89;90;100;120"


@dataclass
class Library:
    """One shared library: how it is built, or why it is not."""

    name: str
    reason: str | None = None
    compiler: str = ""
    objects: list[tuple[Path, str, list[str]]] = field(default_factory=list)
    """Source, suffix of the object file, extra flags."""
    flags: list[str] = field(default_factory=list)
    link_flags: list[str] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)

    @property
    def file_name(self) -> str:
        return f"libscp_{self.name}.so"

    def record(self) -> dict:
        if self.reason is not None:
            return {"built": False, "reason": self.reason}
        return {"built": True, "compiler": version_of(self.compiler), "flags": self.flags, "variants": self.variants}


def version_of(compiler: str) -> str:
    lines = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.strip().splitlines()
    return next((line for line in lines if "release" in line), lines[0] if lines else compiler)


def find_program(variable: str, *names: str) -> str | None:
    candidates = [os.environ[variable]] if os.environ.get(variable) else names
    return next((path for name in candidates if (path := shutil.which(name))), None)


def find_ninja() -> str | None:
    try:
        import ninja  # the build requirement brings its own binary, which need not be on the path

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        return shutil.which("ninja")


def requested(variable: str) -> str:
    value = os.environ.get(variable, "auto")
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{variable}: expected auto, 0 or 1, got {value!r}")
    return value


def plan() -> list[Library]:
    """What will be built, decided before anything runs: the wheel's tag depends on it."""
    libraries = [plan_cpu(), plan_cuda()]
    for library in libraries:
        variable = f"SCP_BUILD_{library.name.upper()}"
        request = requested(variable)
        if request == "0":
            library.reason = f"left out at install by {variable}=0"
        elif library.reason is None and find_ninja() is None:
            library.reason = "ninja was not found at install"
        if request == "1" and library.reason is not None:
            raise SystemExit(f"{variable}=1, but {library.reason}")
    return libraries


def plan_cpu() -> Library:
    compiler = find_program("CXX", "c++", "g++", "clang++")
    kernels = CSRC / "cpu" / "kernels.cpp"
    if not kernels.exists():
        return Library("cpu", reason="this version has no CPU kernels")
    if compiler is None:
        return Library("cpu", reason="no C++ compiler was found at install (c++, g++, clang++, or CXX)")
    levels = VECTOR_LEVELS.get(platform.machine(), {"portable": []})
    objects = [
        (kernels, level, [*flags, f"-DSCP_VECTOR_LEVEL={level}", f"-DSCP_VECTOR_LEVEL_{level.upper()}=1"])
        for level, flags in levels.items()
    ]
    objects += [(source, "", []) for source in sorted(kernels.parent.glob("*.cpp")) if source != kernels]
    available = [f"-DSCP_HAS_{level.upper()}=1" for level in levels]
    flags = [*CXX_FLAGS, *available, f"-I{CSRC}"]
    return Library("cpu", None, compiler, objects, flags, LINK_FLAGS, list(levels))


def plan_cuda() -> Library:
    sources = sorted(CSRC.glob("**/*.cu"))
    if not sources:
        return Library("cuda", reason="this version has no CUDA kernels")
    compiler = find_program("NVCC", "nvcc")
    if compiler is None:
        return Library("cuda", reason="nvcc was not found at install")
    capabilities = os.environ.get("SCP_CUDA_ARCHITECTURES", CUDA_ARCHITECTURES).split(";")
    codes = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in capabilities]
    codes.append(f"-gencode=arch=compute_{capabilities[-1]},code=compute_{capabilities[-1]}")
    flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0", *codes, f"-I{CSRC}"]
    objects = [(source, "", []) for source in sources]
    return Library("cuda", None, compiler, objects, flags, ["-shared", "-cudart=static"], capabilities)


def ninja_file(libraries: list[Library], objects_dir: Path, out: Path) -> str:
    """The text of ``build.ninja``; dependencies on headers are found by the compilers."""

    def quoted(path: Path | str) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def shell(arguments: list[str]) -> str:
        return " ".join(f"'{a}'" if " " in a else a for a in arguments).replace("$", "$$")

    lines = ["ninja_required_version = 1.5", ""]
    for lib in libraries:
        dependencies = "-MD -MF $out.d"
        lines += [
            f"rule compile_{lib.name}",
            f"  command = {shell([lib.compiler, *lib.flags])} $extra {dependencies} -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            f"  description = {lib.name}: $in $extra",
            f"rule link_{lib.name}",
            f"  command = {shell([lib.compiler])} $in {shell(lib.link_flags)} -o $out",
            f"  description = {lib.name}: $out",
        ]
        compiled = []
        for source, suffix, extra in lib.objects:
            relative = source.relative_to(CSRC).as_posix().replace("/", "_")
            target = objects_dir / lib.name / f"{relative}{'.' + suffix if suffix else ''}.o"
            compiled.append(quoted(target))
            lines += [f"build {quoted(target)}: compile_{lib.name} {quoted(source)}", f"  extra = {shell(extra)}"]
        lines += [f"build {quoted(out / lib.file_name)}: link_{lib.name} {' '.join(compiled)}", ""]
    return "\n".join(lines) + "\n"


class BuildNative(Command):
    """Compile ``csrc/`` and write the build record."""

    description = "compile csrc/ into shared libraries"
    user_options = []
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib = None
        self.build_temp = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"), ("build_temp", "build_temp"))

    @property
    def out(self) -> Path:
        """Where the package lies: in an editable install, that is the folder of the sources."""
        return CSRC if self.editable_mode else (Path(self.build_lib) / PACKAGE).resolve()

    def run(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        libraries = self.distribution.libraries_to_build
        for lib in libraries:
            # What an earlier build left must not travel in this one.
            (self.out / lib.file_name).unlink(missing_ok=True)
        wanted = [lib for lib in libraries if lib.reason is None]
        if wanted:
            temp = Path(self.build_temp).resolve() / "native"
            temp.mkdir(parents=True, exist_ok=True)
            (temp / "build.ninja").write_text(ninja_file(wanted, temp, self.out))
            result = subprocess.run([find_ninja(), "-C", str(temp)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            print(result.stdout)
            if result.returncode:
                names = " ".join(f"SCP_BUILD_{lib.name.upper()}=0" for lib in wanted)
                raise SystemExit(f"compiling csrc/ failed (see above); set {names} to install without")
        record = {lib.name: lib.record() for lib in libraries}
        (self.out / "build.json").write_text(json.dumps(record, indent=2) + "\n")

    def get_outputs(self) -> list[str]:
        built = [lib.file_name for lib in self.distribution.libraries_to_build if lib.reason is None]
        return [str(self.out / name) for name in (*built, "build.json")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in sorted(CSRC.rglob("*")) if p.suffix in {".h", ".cuh", ".cpp", ".cu"}]


class CleanBuild(build):
    """Starts from an empty build tree, so that nothing stale gets into a wheel."""

    sub_commands = [*build.sub_commands, ("build_native", None)]

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
    def libraries_to_build(self) -> list[Library]:
        if not hasattr(self, "_libraries_to_build"):
            self._libraries_to_build = plan()
        return self._libraries_to_build

    def has_ext_modules(self) -> bool:
        return any(lib.reason is None for lib in self.libraries_to_build)


setup(
    distclass=NativeDistribution,
    cmdclass={"build": CleanBuild, "build_native": BuildNative, "bdist_wheel": PlatformWheel},
)
