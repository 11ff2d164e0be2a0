"""The Triton kernels compiled without a GPU, and the launches on the host (all cases: ``benchmarks.static``)."""

from dataclasses import replace

import pytest
import torch

from benchmarks import ptx
from scp_kernels.problem import Problem
from tests.support.allocations import allocated_beyond_results
from tests.support.cases import PAPER
from tests.support.processes import run_python

pytest.importorskip("triton")

from scp_kernels.backends.triton import TritonBackend, interpreting, launch, offline, supertiles, tables

pytestmark = pytest.mark.skipif(interpreting(), reason="TRITON_INTERPRET=1 leaves nothing to compile")


@pytest.fixture(autouse=True)
def separate_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))


def problem(**changes) -> Problem:
    sizes = {
        "batch": 14,
        "channels": 32,
        "num_classes": 1,
        "hidden": (256, 256),
        "spatial_shape": (160, 224),
        "groups": 1,
        "dtype": torch.float32,
        "compute_dtype": torch.float32,
        "device": torch.device("meta"),
    }
    return Problem(**(sizes | changes))


ODD = {"channels": 13, "num_classes": 3, "hidden": (100, 72), "spatial_shape": (37, 151)}
COMPILED = [  # every architecture once, and every thing that makes another kernel
    (75, {}, False),
    (80, {}, False),
    (90, {}, False),
    (120, ODD, False),
    *(
        pytest.param(*case, marks=pytest.mark.thorough)
        for case in (
            (75, {"spatial_shape": (37, 151)}, False),
            (75, {"channels": 8, "hidden": (64, 64)}, False),
            (75, {"channels": 16, "hidden": (128, 128)}, False),
            (86, {}, False),
            (89, {"dtype": torch.bfloat16}, True),
            (75, {"extra_position_dims": 1, "groups": 14}, False),
            (100, {"channels": 16, "hidden": (128, 128), "spatial_shape": (32, 96, 96)}, False),
        )
    ),
]


@pytest.mark.parametrize(("capability", "changes", "channels_last"), COMPILED)
def test_no_spills_and_shared_memory_within_the_limit(capability, changes, channels_last):
    sequences = list(offline.abstract_sequences(problem(**changes), capability, channels_last=channels_last))
    assert len(sequences) == 3
    launches = {
        (item.kernel.__name__, item.arguments.get("ROOT")): item for sequence in sequences for item in sequence.launches
    }
    assert len(launches) == 6 + 2 * 4, "four kernels are other ones on supertiles and on tiles"
    for item in launches.values():
        result = offline.compile_launch(item, capability)
        assert result.registers > 16
        assert not result.faults, result


@pytest.mark.parametrize(("capability", "changes"), [(75, {"channels": 8, "hidden": (64, 64)}), (80, {}), (90, ODD)])
def test_lanes_that_share_a_sum_round_it_alike(capability, changes):
    """A product that another lane adds is fused with no add: else two lanes' sums differ, and a GPU keeps either."""
    seen = set()
    for sequence in offline.abstract_sequences(problem(**changes), capability):
        for item in sequence.launches:
            kernel, _ = offline.compile_kernel(item, capability)
            if kernel.hash not in seen:
                seen.add(kernel.hash)
                assert not shuffled_products_that_are_fused(ptx.parse(kernel.asm["ptx"])), kernel.metadata.name
    assert len(seen) > 9


def test_a_fused_product_that_is_shuffled_is_seen():
    text = """
.visible .entry kernel(
	.param .u64 kernel_param_0
)
{
	mul.f32 	%f3, %f1, %f2;
	mov.b32 	%r1, %f3;
	shfl.sync.bfly.b32 	%r2, %r1, 1, 31, -1;
	mov.b32 	%f4, %r2;
	fma.rn.f32 	%f5, %f1, %f2, ADDEND;
	ret;
}
"""
    assert shuffled_products_that_are_fused(ptx.parse(text.replace("ADDEND", "%f4"))) == ["%f5"]
    assert not shuffled_products_that_are_fused(ptx.parse(text.replace("ADDEND", "0f00000000")))


def shuffled_products_that_are_fused(function: ptx.PtxFunction) -> list[str]:
    """Registers that an fma writes whose addend is a product of another lane's."""
    result = []
    for block in function.blocks:
        kinds: dict[str, str] = {}  # of registers, through moves: what made them
        for instruction in block.instructions:
            name = instruction.opcode.split(".")[0]
            operands = [ptx.names_in(operand) for operand in instruction.operands]
            if name in ("st", "bra", "bar", "ret") or not operands:
                continue
            sources = [kinds.get(names[0], "") if names else "" for names in operands[1:]]
            if name == "fma" and sources[-1] == "shuffled product":
                result += operands[0]
            kind = sources[0] if name == "mov" and sources else {"mul": "product"}.get(name, "")
            if name == "shfl" and sources[0] == "product":
                kind = "shuffled product"
            kinds |= dict.fromkeys(operands[0], kind)
    return result


def test_a_kernel_that_spills_is_seen(monkeypatch):
    """The check itself can fail: 32 registers are too few for any of these kernels."""
    narrow = tables.Configuration((8, 8), 8, 32, 4, max_registers=32)
    monkeypatch.setattr(tables, "TABLE", (tables.TableEntry(tables.FORWARD, narrow),))
    sequence = next(offline.abstract_sequences(problem(), 90))
    result = offline.compile_launch(sequence.launches[-1], 90)
    assert any("spills" in fault for fault in result.faults), result


def test_shared_memory_above_the_limit_is_seen():
    result = offline.Resources("kernel", 75, registers=64, stack_bytes=0, shared_bytes=65537, threads=128)
    assert result.faults == ["65537 bytes of shared memory, 65536 are the limit"]


def test_tensor_float_32_only_where_allowed():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert launch.precision(problem(), 90) == "ieee"
        torch.set_float32_matmul_precision("high")
        assert launch.precision(problem(), 90) == "tf32"
        assert launch.precision(problem(), 75) == "ieee"
        assert launch.precision(problem(dtype=torch.bfloat16), 80) == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("classes_first", [False, True])
@pytest.mark.parametrize("limit", [16, 64])
@pytest.mark.parametrize(("classes", "channels"), [(1, 1), (1, 32), (3, 5), (2, 100), (100, 2), (70, 70)])
def test_output_blocks(classes, channels, limit, classes_first):
    block_n, block_c = launch.output_blocks(classes, channels, limit, classes_first=classes_first)
    assert 8 <= block_n * block_c <= limit
    assert block_n & (block_n - 1) == 0 and block_c & (block_c - 1) == 0
    if classes_first and classes <= limit:
        assert block_n >= classes
    if not classes_first and channels <= limit:
        assert block_c >= channels


@pytest.mark.parametrize("boxes", [1, 560, 561, 490, 192, 21000, 16384])
@pytest.mark.parametrize("workspace", [1, 400_000, 16 * 2**20, 10**9])
def test_slabs_cover_every_box_once_within_the_workspace(monkeypatch, boxes, workspace):
    monkeypatch.setattr(tables, "PARTIALS_BYTES", workspace)
    slabs = supertiles.Slabs(boxes, problem(), torch.device("meta"))
    used = slabs.partials.nbytes + slabs.first_layer.nbytes + slabs.begun.nbytes
    assert used <= max(workspace, used // slabs.count)
    assert slabs.deal(boxes)[0] == slabs.count, "no slab is there for nothing"
    for dealt in {boxes, boxes // 2 + 1, 1}:
        count, arguments = slabs.deal(dealt)
        assert count <= slabs.count and arguments["boxes"] == dealt
        per_slab = arguments["boxes_per_slab"]
        assert per_slab * (count - 1) < dealt <= per_slab * count, "no slab is without work"


# A last chunk with fewer supertiles than those before it.
UNEVEN = {"channels": 16, "hidden": (128, 128), "spatial_shape": (720, 1280)}


@pytest.mark.parametrize("changes", [{}, {"spatial_shape": (1000, 1000)}, {"groups": 14}, ODD, UNEVEN], ids=str)
def test_chunks_cover_every_supertile_once(changes):
    """Whatever a map's size: what each kernel is launched for adds up to all boxes, and a chunk fits its workspace."""
    for sequence in offline.abstract_sequences(problem(**changes), 90):
        by_kernel = {}
        for item in sequence.launches:
            by_kernel.setdefault((item.kernel.__name__, item.arguments.get("ROOT")), []).append(item)
        roots = by_kernel["scp_classify_fwd_kernel", True]
        firsts = [item.arguments["first_supertile"] for item in roots]
        counts = [item.grid[0] for item in roots]
        assert firsts == [sum(counts[:n]) for n in range(len(counts))]
        height, width = problem(**changes).spatial_shape
        assert sum(counts) == problem(**changes).groups * -(-height // 32) * -(-width // 32)
        for (name, root), items in by_kernel.items():
            if name in ("scp_prepare_fwd_kernel", "scp_sum_slabs_bwd_kernel"):
                assert len(items) == 1, "once per pass"
                continue
            assert len(items) == len(counts), "every kernel runs once per chunk"
            for item, count, first in zip(items, counts, firsts, strict=True):
                sizes = item.arguments
                on_tiles = root is not True and name != "scp_collect_bwd_kernel"
                assert sizes.get("boxes", item.grid[0]) == count * (16 if on_tiles else 1)
                assert sizes.get("first_supertile", first) == first
                if "boxes_per_slab" in sizes:
                    assert item.grid[0] <= sizes["partials"].shape[0]
                    assert sizes["boxes_per_slab"] * item.grid[0] >= sizes["boxes"]
        names = ("unit1", "index_in_parent", "lines", "unit2", "rows", "outputs", "counts", "moments")
        names += tuple(prefix + name for name in names for prefix in ("parent_", "grad_", "parent_grad_"))
        on_boxes = [item.arguments for item in sequence.launches if "SUPER_H" in item.arguments]
        held = [arguments[name] for arguments in on_boxes for name in names if name in arguments]
        chunk = {id(tensor): tensor for tensor in held}.values()
        assert 0 < sum(t.nbytes for t in chunk) <= tables.FOLDED_BYTES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", PAPER, ids=str)
def test_memory_beyond_inputs_outputs_and_gradients(case, dtype):
    """All that either pass allocates, at the paper's sizes: folded tiles, partial gradients, 1 MiB for the rest."""
    used = allocated_beyond_results(replace(case, dtype=dtype).inputs("meta"))
    assert set(used) == {"forward", "backward", "backward of the parameters alone"}
    assert 0 < used.pop("forward") <= tables.FOLDED_BYTES + 2**20
    assert all(0 < n <= tables.FOLDED_BYTES + tables.PARTIALS_BYTES + 2**20 for n in used.values()), used


def test_launches_hold_nothing_the_size_of_the_weight_field():
    """No tensor but the features, the logits and their gradients has an element for each pixel."""
    for sequence in offline.abstract_sequences(problem(spatial_shape=(4096, 4096)), 90):
        for launched in sequence.launches:
            for name, value in launched.arguments.items():
                if isinstance(value, torch.Tensor) and name not in ("x", "y", "grad_logits", "grad_features"):
                    assert value.numel() < 4096 * 4096, name


@pytest.mark.parametrize("bad", [{"tile": (3, 16)}, {"block_outputs": 24}, {"block_hidden": 4}, {"num_warps": 3}])
def test_configurations_that_no_kernel_can_have_are_refused(bad):
    sizes = {"tile": (4, 16), "block_hidden": 32, "block_outputs": 32, "num_warps": 4}
    tables.Configuration(**sizes)
    with pytest.raises(ValueError, match="must be"):
        tables.Configuration(**(sizes | bad))


def test_tiles_that_do_not_fill_a_supertile_are_refused(monkeypatch):
    wide = tables.Configuration((4, 64), 8, 32, 4)
    monkeypatch.setattr(tables, "TABLE", (tables.TableEntry(tables.FORWARD, wide),))
    with pytest.raises(ValueError, match="cannot be cut into tiles of"):
        next(offline.abstract_sequences(problem(), 90))


@pytest.mark.parametrize("capability", tables.SHARED_MEMORY_KIB)
@pytest.mark.parametrize("kernel", [tables.FORWARD, tables.FEATURES, tables.PARAMETERS])
@pytest.mark.parametrize("hidden", [(1, 1), (64, 64), (100, 37), (256, 256), (1024, 512)])
def test_the_table_has_an_entry_for_every_call(capability, kernel, hidden):
    for outputs in (1, 16, 1000):
        for precision in ("ieee", "tf32"):
            tables.find_configuration(kernel, capability, hidden, outputs, 4, precision)
    with pytest.raises(LookupError, match="no configuration for"):
        tables.find_configuration(kernel, capability, hidden, 16, 8, "ieee")


REASONS = [
    ({"dtype": torch.float64, "compute_dtype": torch.float64}, "float64 is not among"),
    ({"compute_dtype": torch.float64}, "float64 is not among"),
    ({"device": torch.device("cpu")}, "tensors are on cpu, not on a CUDA device"),
]


@pytest.mark.parametrize(("changes", "reason"), REASONS)
def test_why_a_call_is_unsupported(changes, reason):
    assert reason in TritonBackend().unsupported_reason(problem(**changes))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_why_this_machine_cannot():
    assert "no CUDA device is available" in TritonBackend().unavailable_reason()


def test_importing_the_package_imports_no_triton():
    """Nothing of Triton but what PyTorch's own counter of FLOPs imports, and none of our kernels."""
    code = (
        "import sys, torch.utils.flop_counter;"
        "before = {name for name in sys.modules if name.split('.')[0] == 'triton'};"
        "import scp_kernels; scp_kernels.available_backends();"
        "assert 'scp_kernels.backends.triton' in sys.modules;"
        "new = [name for name in set(sys.modules) - before if name.split('.')[0] == 'triton'"
        " or name.startswith('scp_kernels.backends.triton.')];"
        "assert not new, new"
    )
    run_python("-c", code)
