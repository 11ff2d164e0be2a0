"""Builds ``csrc/`` into plain shared libraries with a C ABI, loaded by ctypes: no torch, one binary for every Python.

What is built goes into the package ``scp_kernels_native``, beside ``build.json``, which says for each library what was
built, or why it was not; ``python -m scp_kernels`` shows it. Environment variables:

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

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
PACKAGE = "scp_kernels_native"
INCLUDE_FLAGS = [f"-I{CSRC}", f"-I{CSRC / 'include'}"]

# Contraction into FMA is left to the compiler: every result is held to a tolerance, none to a bit pattern.
CXX_FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"),
    *("-Wall", "-Wextra"),
]
CXX_LINK_FLAGS = ["-shared", "-fopenmp"]
# Taken where the compiler knows them. GCC else spills the operands of the leaves' products inside their loops.
CXX_TUNING_FLAGS = ["-fira-region=all"]
# csrc/cpu/kernels.cpp is compiled once for each vector level, and the best one is picked when the library runs.
X86_LEVELS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mpopcnt"],
    "avx512": [
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c", "-mpopcnt"),
        "-mprefer-vector-width=512",
    ],
}
VECTOR_LEVELS = {"x86_64": X86_LEVELS}
OTHER_MACHINES: dict[str, list[str]] = {"portable": []}

NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0"]
NVCC_LINK_FLAGS = ["-shared", "-cudart=static"]
CUDA_ARCHITECTURES = "75;80;86;89;90;100;120"

CXX_PROBE = '#include <omp.h>\nextern "C" int scp_probe() { return omp_get_max_threads(); }\n'
NVCC_PROBE = '__global__ void scp_kernel() {}\nextern "C" void scp_probe() { scp_kernel<<<1, 1>>>(); }\n'


@dataclass
class Library:
    """One shared library: how it is built, or why it is not."""

    name: str
    reason: str | None = None
    compiler: list[str] = field(default_factory=list)
    objects: list[tuple[Path, str, list[str]]] = field(default_factory=list)
    """Source, suffix of the object file, extra flags."""
    flags: list[str] = field(default_factory=list)
    link_flags: list[str] = field(default_factory=list)
    variants: dict[str, list[str]] = field(default_factory=dict)
    """Vector levels or compute capabilities, and the flags of each."""

    @property
    def file_name(self) -> str:
        return f"libscp_{self.name}.so"

    @property
    def variable(self) -> str:
        return f"SCP_BUILD_{self.name.upper()}"

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
        found = shutil.which(chosen[0])
        return ([found, *chosen[1:]], None) if found else ([], f"{variable}={chosen[0]} was not found at install")
    found = next((path for name in names if (path := shutil.which(name))), None)
    return ([found], None) if found else ([], f"{' or '.join(names)} was not found at install")


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


def plan() -> list[Library]:
    """What will be built, decided before anything runs: the wheel's tag depends on it."""
    libraries = []
    for name, plan_library in (("cpu", plan_cpu), ("cuda", plan_cuda)):
        library = Library(name)
        request = os.environ.get(library.variable, "auto")
        if request not in ("auto", "0", "1"):
            raise SystemExit(f"{library.variable}: expected auto, 0 or 1, got {request!r}")
        if request == "0":
            library.reason = f"left out at install by {library.variable}=0"
        elif platform.system() != "Linux":
            library.reason = f"csrc/ is compiled on Linux only, and this is {platform.system()}"
        else:
            library = plan_library()
            if library.reason is None and find_ninja() is None:
                library.reason = "ninja was not found at install"
        if request == "1" and library.reason is not None:
            raise SystemExit(f"{library.variable}=1, but {library.reason}")
        libraries.append(library)
    return libraries


def plan_cpu() -> Library:
    kernels = CSRC / "cpu" / "kernels.cpp"
    if not kernels.exists():
        return Library("cpu", reason="this version has no CPU kernels")
    compiler, reason = find_compiler("CXX", "c++", "g++", "clang++")
    reason = reason or probe(compiler, [*CXX_FLAGS, *CXX_LINK_FLAGS], CXX_PROBE, ".cpp")
    flags = [*CXX_FLAGS, *(f for f in CXX_TUNING_FLAGS if reason is None and knows(compiler, f))]
    levels = VECTOR_LEVELS.get(platform.machine(), OTHER_MACHINES)
    objects = [(kernels, level, [f"-DSCP_ISA_TARGET={level}", *flags]) for level, flags in levels.items()]
    objects += [(source, "", []) for source in sorted(kernels.parent.glob("*.cpp")) if source != kernels]
    return Library("cpu", reason, compiler, objects, flags, CXX_LINK_FLAGS, levels)


def plan_cuda() -> Library:
    sources = sorted(CSRC.glob("**/*.cu"))
    if not sources:
        return Library("cuda", reason="this version has no CUDA kernels")
    compiler, reason = find_compiler("NVCC", "nvcc")
    reason = reason or probe(compiler, [*NVCC_FLAGS, *NVCC_LINK_FLAGS], NVCC_PROBE, ".cu")
    if reason is not None:
        return Library("cuda", reason)
    listed = subprocess.run([*compiler, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    known = {architecture.removeprefix("compute_") for architecture in listed}
    capabilities = [c for c in CUDA_ARCHITECTURES.split(";") if c in known]
    if chosen := os.environ.get("SCP_CUDA_ARCHITECTURES"):
        capabilities = sorted(chosen.split(";"), key=lambda c: (len(c), c))
        if unknown := [c for c in capabilities if c.rstrip("af") not in known]:
            raise SystemExit(f"SCP_CUDA_ARCHITECTURES: nvcc does not compile for {unknown}; it knows {sorted(known)}")
    variants = {c: [f"-gencode=arch=compute_{c},code=sm_{c}"] for c in capabilities}
    # PTX of the oldest, so that devices newer than the newest architecture, or between two, run too.
    oldest = capabilities[0].rstrip("af")
    variants["ptx"] = [f"-gencode=arch=compute_{oldest},code=compute_{oldest}"]
    flags = [*NVCC_FLAGS, *(flag for codes in variants.values() for flag in codes)]
    return Library("cuda", None, compiler, [(source, "", []) for source in sources], flags, NVCC_LINK_FLAGS, variants)


def ninja_file(libraries: list[Library], objects_dir: Path, out: Path) -> str:
    """The text of ``build.ninja``; dependencies on headers are found by the compilers."""

    def quoted(path: Path | str) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def shell(arguments: list[str]) -> str:
        return shlex.join(arguments).replace("$", "$$")

    lines = ["ninja_required_version = 1.5", ""]
    for lib in libraries:
        lines += [
            f"rule compile_{lib.name}",
            f"  command = {shell([*lib.compiler, *lib.flags, *INCLUDE_FLAGS])} $extra -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            f"  description = {lib.name}: $in $extra",
            f"rule link_{lib.name}",
            f"  command = {shell(lib.compiler)} $in {shell(lib.link_flags)} -o $out",
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
    user_options: ClassVar[list] = []
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib = None
        self.build_base = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"), ("build_base", "build_base"))

    @property
    def out(self) -> Path:
        """Where the package lies: in an editable install, that is the folder of the sources."""
        return CSRC / PACKAGE if self.editable_mode else (Path(self.build_lib) / PACKAGE).resolve()

    def run(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        libraries = self.distribution.libraries_to_build
        for lib in libraries:
            # What an earlier build left must not travel in this one.
            (self.out / lib.file_name).unlink(missing_ok=True)
        if wanted := [lib for lib in libraries if lib.reason is None]:
            self.compile(wanted)
        record = {lib.name: lib.record() for lib in libraries}
        (self.out / "build.json").write_text(json.dumps(record, indent=2) + "\n")

    def compile(self, libraries: list[Library]) -> None:
        # Objects stay here between builds, whatever their mode: a developer's rebuild compiles what changed.
        objects_dir = Path(self.build_base).resolve() / "native"
        objects_dir.mkdir(parents=True, exist_ok=True)
        (objects_dir / "build.ninja").write_text(ninja_file(libraries, objects_dir, self.out))
        command = [find_ninja(), "-C", str(objects_dir)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(result.stdout, flush=True)
        if result.returncode:
            skipping = " ".join(f"{lib.variable}=0" for lib in libraries)
            raise SystemExit(f"csrc/ does not compile (the compiler's message is above); {skipping} installs without")

    def get_outputs(self) -> list[str]:
        built = [lib.file_name for lib in self.distribution.libraries_to_build if lib.reason is None]
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
    def libraries_to_build(self) -> list[Library]:
        if not hasattr(self, "_libraries_to_build"):
            self._libraries_to_build = plan()
        return self._libraries_to_build

    def has_ext_modules(self) -> bool:
        return any(lib.reason is None for lib in self.libraries_to_build)


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
