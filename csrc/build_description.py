"""What ``csrc/`` is built into: the shared libraries, their compilers, sources, flags, ISA targets and architectures.

``setup.py`` finds the compilers and builds what stands here.
"""

import platform
from dataclasses import dataclass, field
from pathlib import Path

CSRC = Path(__file__).parent.resolve()
PACKAGE = "scp_kernels_native"
"""The import package that the libraries are installed into, beside ``build.json``."""
INCLUDE_FLAGS = [f"-I{CSRC}", f"-I{CSRC / 'include'}"]


@dataclass(frozen=True)
class Library:
    """One shared library, ``libscp_<name>.so``, as far as it does not depend on the machine that builds it."""

    name: str
    compilers: tuple[str, ...]
    """Commands that are looked for, in this order, where ``variable`` names none."""
    variable: str
    """The environment variable that names the compiler."""
    sources: tuple[Path, ...]
    flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    probe: str
    """A program that every compiler fit for the library can make a shared library of."""
    tuning_flags: tuple[str, ...] = ()
    """Taken where the compiler knows them."""
    per_isa_target: tuple[Path, ...] = ()
    """Sources that are compiled once per ISA target."""
    isa_targets: dict[str, list[str]] = field(default_factory=dict)

    @property
    def request_variable(self) -> str:
        """The environment variable that demands the library (``1``) or leaves it out (``0``)."""
        return f"SCP_BUILD_{self.name.upper()}"

    @property
    def file_name(self) -> str:
        return f"libscp_{self.name}.so"


# The best target that the processor has is chosen when the library runs.
X86_TARGETS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mpopcnt"],
    "avx512": [
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c", "-mpopcnt"),
        "-mprefer-vector-width=512",
    ],
}
TARGETS_BY_MACHINE = {"x86_64": X86_TARGETS}
PORTABLE_TARGETS: dict[str, list[str]] = {"portable": []}

CPU = Library(
    name="cpu",
    compilers=("c++", "g++", "clang++"),
    variable="CXX",
    sources=tuple(sorted(CSRC.glob("cpu/*.cpp"))),
    # Contraction into FMA is left to the compiler: every result is held to a tolerance, none to a bit pattern.
    flags=(
        *("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"),
        *("-Wall", "-Wextra"),
    ),
    link_flags=("-shared", "-fopenmp"),
    probe='#include <omp.h>\nextern "C" int scp_probe() { return omp_get_max_threads(); }\n',
    # GCC else spills the operands of the leaves' products inside their loops.
    tuning_flags=("-fira-region=all",),
    per_isa_target=(CSRC / "cpu" / "kernels.cpp",),
    isa_targets=TARGETS_BY_MACHINE.get(platform.machine(), PORTABLE_TARGETS),
)

CUDA = Library(
    name="cuda",
    compilers=("nvcc",),
    variable="NVCC",
    sources=tuple(sorted(CSRC.glob("**/*.cu"))),
    flags=("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0"),
    link_flags=("-shared", "-cudart=static"),
    probe='__global__ void scp_kernel() {}\nextern "C" void scp_probe() { scp_kernel<<<1, 1>>>(); }\n',
)

LIBRARIES = (CPU, CUDA)

CUDA_ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
"""Compute capabilities, of which those are built that nvcc knows; ``SCP_CUDA_ARCHITECTURES`` chooses others."""


def isa_target_flags(target: str) -> list[str]:
    """Flags of one compilation of the sources in ``per_isa_target``."""
    return [f"-DSCP_ISA_TARGET={target}", *CPU.isa_targets[target]]


def architecture_flags(capabilities: list[str]) -> dict[str, list[str]]:
    """nvcc's flags by compute capability, and of the PTX of the oldest, for devices that none of them fits."""
    oldest = capabilities[0].rstrip("af")
    return {
        **{c: [f"-gencode=arch=compute_{c},code=sm_{c}"] for c in capabilities},
        "ptx": [f"-gencode=arch=compute_{oldest},code=compute_{oldest}"],
    }
