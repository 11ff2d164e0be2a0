"""Launch configurations by architecture and width: one table, and how a call finds its entry.

There is no autotuning at a user's first call. To extend the table, add an entry: the first that matches a call's pass,
compute capability and widths is taken, so put the special before the general. ``python -m benchmarks.static`` then
compiles what the entry implies for every architecture and shows registers, stack and shared memory; an entry whose
kernel spills or exceeds an architecture's shared memory fails ``tests/triton/test_compile.py``.
"""

from dataclasses import dataclass

FORWARD, FEATURES, PARAMETERS = "forward", "backward_features", "backward_parameters"

# Shared memory that a block may use, in KiB, and thereby the architectures the kernels are compiled for in the tests.
SHARED_MEMORY_KIB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}

# Bytes of folded tiles, which the first kernels leave for those after them: larger maps are taken in chunks.
FOLDED_BYTES = 24 * 2**20
# Bytes of partial gradients of the parameters: more means more slabs and thus more programs.
PARTIALS_BYTES = 16 * 2**20
MOST_SLABS = 512

# Units of layer 1 that are classified at once, by one warp.
BLOCK_CLASSIFIED = 32
# Rows and columns of a supertile, which is folded once for all tiles in it: a multiple of every tile's.
SUPERTILE = (32, 32)
# Of ``prepare``; rows of unstable units in the outputs' folding, and how many programs of a tile share them; units of
# layers 1 and 2 in ``scp_collect_bwd``.
PREPARE = {"BLOCK_ROWS": 32, "BLOCK_COLUMNS": 32}
FOLD_OUTPUTS_ROWS = 8
TILE_ROW_PROGRAMS = 2
COLLECT = {"BLOCK_U": 16, "BLOCK_K": 32}
# Slabs, and columns of their rows, that are summed at once.
SUM_SLABS = {"BLOCK_S": 32, "BLOCK": 32}


def compile_options(num_warps: int, max_registers: int | None = None) -> dict[str, int | bool]:
    """What the compiler is told: only loops that ask for it are pipelined, and multiply-adds round once.

    (Triton 3.10 rounds them twice unless told otherwise, at twice the instructions.)
    """
    common: dict[str, int | bool] = {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": True}
    return common if max_registers is None else common | {"maxnreg": max_registers}


def output_block(outputs: int) -> int:
    """Outputs of Φ that a program of ``folding`` or ``fold_backward`` has at once."""
    return min(32, 1 << (outputs - 1).bit_length())


def position_block(axes: int) -> int:
    """Columns of layer 1's gradients, w₁'s and b₁'s, padded to a power of two."""
    return 1 << (2 * axes).bit_length()


@dataclass(frozen=True)
class HiddenFolding:
    """Units of layer 1 and of layer 2 that the hidden layers' folding, or its backward, takes at once; its threads."""

    block_u: int
    block_k: int
    num_warps: int
    max_registers: int | None = None
    """Per thread, see :class:`Configuration`."""

    @property
    def options(self) -> dict[str, int | bool]:
        """What the compiler is told."""
        return compile_options(self.num_warps, self.max_registers)


# Folding by one warp: no sum waits for another warp's. Backward by more: the supertiles are few, and take long.
SUPERTILE_FOLDING = HiddenFolding(8, 128, 1)
TILE_FOLDING = HiddenFolding(8, 32, 1)
SUPERTILE_FOLD_BACKWARD = HiddenFolding(16, 16, 4, max_registers=255)
TILE_FOLD_BACKWARD = HiddenFolding(8, 16, 2, max_registers=255)


@dataclass(frozen=True)
class Configuration:
    """Sizes of one kernel: a tile of pixels, blocks of units, and how many threads share them."""

    tile: tuple[int, int]
    """Rows and columns of a tile of pixels. Smaller tiles have fewer unstable units, and repeat more of the rest."""
    block_hidden: int
    """Units of layer 2 in registers at once."""
    block_outputs: int
    """Most pairs of class and channel in registers at once."""
    num_warps: int
    max_registers: int | None = None
    """Registers per thread at most; None leaves it to the assembler, which spills a little to fit one block more."""

    def __post_init__(self) -> None:
        powers = (*self.tile, self.block_hidden, self.block_outputs, self.num_warps)
        if any(n < 1 or n & (n - 1) for n in powers):
            raise ValueError(f"sizes of a configuration must be powers of two, got {self}")
        if min(self.tile[0] * self.tile[1], self.block_hidden, self.block_outputs) < 8:
            raise ValueError(f"pixels, block_hidden and block_outputs must be 8 or more (tl.dot), got {self}")

    @property
    def options(self) -> dict[str, int | bool]:
        """What the compiler is told."""
        return compile_options(self.num_warps, self.max_registers)


@dataclass(frozen=True)
class TableEntry:
    """One entry of the table: what it is for, and the configuration."""

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


# The devices of 7.5 have few multiprocessors, where fewer warps per tile let more tiles run at once: by the predicted
# cycles of ``benchmarks.static``, until a GPU says otherwise.
FEW_MULTIPROCESSORS = (75, 75)

TABLE = (
    TableEntry(FORWARD, Configuration((8, 8), 8, 32, 1, max_registers=255), FEW_MULTIPROCESSORS, outputs=(1, 16)),
    TableEntry(FORWARD, Configuration((8, 8), 8, 32, 2, max_registers=136), FEW_MULTIPROCESSORS, outputs=(17, 32)),
    TableEntry(FEATURES, Configuration((8, 8), 8, 32, 1, max_registers=128), FEW_MULTIPROCESSORS, outputs=(1, 8)),
    TableEntry(FEATURES, Configuration((8, 8), 8, 32, 2, max_registers=168), FEW_MULTIPROCESSORS, outputs=(9, 32)),
    TableEntry(PARAMETERS, Configuration((8, 8), 8, 32, 1, max_registers=255), FEW_MULTIPROCESSORS, outputs=(1, 8)),
    TableEntry(PARAMETERS, Configuration((8, 8), 8, 32, 2, max_registers=255), FEW_MULTIPROCESSORS, outputs=(9, 16)),
    TableEntry(FORWARD, Configuration((8, 8), 8, 32, 4, max_registers=128), outputs=(1, 32)),
    TableEntry(FORWARD, Configuration((8, 8), 8, 64, 8, max_registers=128)),
    TableEntry(FEATURES, Configuration((8, 8), 8, 32, 4, max_registers=128), outputs=(1, 32)),
    TableEntry(FEATURES, Configuration((8, 8), 8, 64, 8, max_registers=128)),
    TableEntry(PARAMETERS, Configuration((8, 8), 8, 32, 4, max_registers=255)),
)


def find_configuration(
    kernel: str, capability: int, hidden: tuple[int, int], outputs: int, itemsize: int, precision: str
) -> Configuration:
    """The configuration of the first entry that matches.

    Raises:
        LookupError: none does.
    """
    width = max(hidden)
    for entry in TABLE:
        if (
            entry.kernel == kernel
            and entry.itemsize == itemsize
            and precision in entry.precision
            and entry.capability[0] <= capability <= entry.capability[1]
            and entry.hidden[0] <= width <= entry.hidden[1]
            and all(h % entry.hidden_multiple == 0 for h in hidden)
            and entry.outputs[0] <= outputs <= entry.outputs[1]
        ):
            return entry.configuration
    raise LookupError(f"no configuration for {kernel}, compute capability {capability}, widths {hidden}")
