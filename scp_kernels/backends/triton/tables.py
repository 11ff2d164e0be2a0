"""Launch configurations by architecture and width: one table, and how a call finds its line.

There is no autotuning at a user's first call. To extend the table, add a line: the first that matches a call's pass,
compute capability and widths is taken, so put the special before the general. ``python -m benchmarks.static`` then
compiles what the line implies for every architecture and shows registers, stack and shared memory; a line whose kernel
spills or exceeds an architecture's shared memory fails ``tests/triton/test_compile.py``.
"""

from dataclasses import dataclass

FORWARD, FEATURES, PARAMETERS = "forward", "backward_features", "backward_parameters"

# Shared memory a block may use, in KiB, and thereby the architectures the kernels are compiled for in the tests.
SHARED_MEMORY_KIB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}

# Bytes of what the plan kernels leave for the kernels after them: larger maps are taken a part at a time.
PLAN_BYTES = 8 * 2**20
# Bytes of partial sums in the backward pass of the parameters: more means more slabs and thus more programs.
PARTIALS_BYTES = 16 * 2**20
MOST_SLABS = 512

# Of the kernels of ``plan`` and ``backward_folded``: units of layer 1 told apart at once, by one warp; blocks of rows
# (or sites), of layer 1 and of layer 2 in the products, one of them summed over; programs that are enough.
BLOCK_CLASSIFIED = 32
FOLD = {"BLOCK_ROWS": 32, "BLOCK_H1": 16, "BLOCK_H2": 64}
SECOND_WEIGHT = {"BLOCK_ROWS": 16, "BLOCK_H1": 64, "BLOCK_H2": 32}
FIRST_WEIGHT = {"BLOCK_SITES": 16, "BLOCK_H1": 32, "BLOCK_H2": 16}
ENOUGH_PROGRAMS = 256


def options(num_warps: int, max_registers: int | None = None) -> dict[str, int | bool]:
    """What the compiler is told: only loops that ask for it are pipelined, and multiply-adds round once.

    (Triton 3.10 rounds them twice unless told otherwise, at twice the instructions.)
    """
    common: dict[str, int | bool] = {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": True}
    return common if max_registers is None else common | {"maxnreg": max_registers}


@dataclass(frozen=True)
class Configuration:
    """Sizes of one kernel: a tile of pixels, blocks of units, and how many threads share them."""

    tile: tuple[int, int]
    """Rows and columns of a tile of pixels. Smaller tiles have fewer mixed units, and repeat more of the rest."""
    block_h2: int
    """Units of layer 2 in registers at once."""
    block_outputs: int
    """Most pairs of class and channel in registers at once."""
    num_warps: int
    max_registers: int | None = None
    """Registers a thread may take; None leaves it to the assembler, which spills a little to fit one block more."""

    def __post_init__(self) -> None:
        powers = (*self.tile, self.block_h2, self.block_outputs, self.num_warps)
        if any(n < 1 or n & (n - 1) for n in powers):
            raise ValueError(f"sizes of a configuration must be powers of two, got {self}")
        if min(self.tile[0] * self.tile[1], self.block_h2, self.block_outputs) < 16:
            raise ValueError(f"pixels, block_h2 and block_outputs must be 16 or more (tl.dot), got {self}")

    @property
    def options(self) -> dict[str, int | bool]:
        """What the compiler is told."""
        return options(self.num_warps, self.max_registers)


@dataclass(frozen=True)
class Line:
    """One line of the table: what it is for, and the configuration."""

    kernel: str
    configuration: Configuration
    capability: tuple[int, int] = (0, 10**9)
    """Compute capabilities ``first, last`` (as 90), both included."""
    hidden: tuple[int, int] = (0, 10**9)
    """Widths max(h₁, h₂), both ends included."""
    hidden_multiple: int = 1
    """Both h₁ and h₂ are multiples of this: widths that allow vector loads need fewer registers for addresses."""
    outputs: tuple[int, int] = (0, 10**9)
    """N·C, both ends included."""
    itemsize: int = 4
    """Bytes of the compute dtype."""
    precision: tuple[str, ...] = ("ieee", "tf32")
    """Arithmetic of the products with w₃."""


TABLE = (
    Line(FORWARD, Configuration((4, 16), 64, 32, 8, max_registers=128), outputs=(1, 32)),
    Line(FORWARD, Configuration((4, 16), 32, 64, 8, max_registers=128)),
    Line(FEATURES, Configuration((4, 16), 64, 32, 8, max_registers=128), outputs=(1, 32)),
    Line(FEATURES, Configuration((4, 16), 32, 64, 8, max_registers=128)),
    Line(PARAMETERS, Configuration((4, 16), 32, 16, 8, max_registers=255), (80, 89), precision=("tf32",)),
    Line(PARAMETERS, Configuration((4, 16), 64, 16, 8, max_registers=255), hidden_multiple=16),
    Line(PARAMETERS, Configuration((4, 16), 32, 16, 8, max_registers=255)),
)


def find(
    kernel: str, capability: int, hidden: tuple[int, int], outputs: int, itemsize: int, precision: str
) -> Configuration:
    """The first line of the table that matches.

    Raises:
        LookupError: none does.
    """
    width = max(hidden)
    for line in TABLE:
        if (
            line.kernel == kernel
            and line.itemsize == itemsize
            and precision in line.precision
            and line.capability[0] <= capability <= line.capability[1]
            and line.hidden[0] <= width <= line.hidden[1]
            and all(h % line.hidden_multiple == 0 for h in hidden)
            and line.outputs[0] <= outputs <= line.outputs[1]
        ):
            return line.configuration
    raise LookupError(f"no configuration for {kernel}, compute capability {capability}, widths {hidden}")
