"""PTX runs on the host as a GPU runs it, on small programs whose results and counts are known."""

import numpy as np
import pytest
import torch

from benchmarks import ptx
from benchmarks.ptx_machine import Machine
from benchmarks.ptx_memory import GlobalMemory
from tests.benchmarks.test_cycles import EXPECTED

# 64 threads, two warps. %r1 is the thread, %r2 its lane, %rd1 what the kernel is called with; no line has a comma.
PROGRAM = """
.visible .entry some_kernel(
	.param .u64 .ptr .global .align 1 some_kernel_param_0,
	.param .u32 some_kernel_param_1
)
.reqntid 64
{{
	.reg .b32 	%r<99>;
$L__func_begin0:
	.loc	1 20 0                          // some.py:20:0
// %bb.0:
	ld.param.b64 	%rd1, [some_kernel_param_0];
	mov.u32 	%r1, %tid.x;
	and.b32 	%r2, %r1, 31;
	mov.b32 	%r3, global_smem;
	mov.b32 	%r10, 0;
	mov.b32 	%r11, 0;
	mov.b32 	%r12, 0;
	mov.b32 	%r13, 0;
{code}
	ret;
$L__func_end0:
}}
"""
SIZE = 4096


def run(code: str, blocks: int = 1, number: int = 0) -> tuple[Machine, np.ndarray]:
    """The machine after a program, and the words of its global memory, which hold their own index at first."""
    words = torch.arange(SIZE, dtype=torch.int32)
    memory = GlobalMemory([words])
    machine = Machine(ptx.parse(PROGRAM.format(code=code)), [memory.address(words), number], 64, 8192, memory)
    machine.run((blocks, 1, 1))
    memory.copy_back()
    return machine, words.numpy()


def at(address: str, access: str) -> str:
    """An access of each thread at an address that ``address`` puts into ``%r4``, in shared or global memory."""
    return f"{address}\ncvt.u64.u32 %rd2, %r4;\nadd.s64 %rd3, %rd1, %rd2;\n{access}"


LOAD, GLOBAL = "ld.shared.b32 %r10, [%r4];", "ld.global.b32 { %r10 }, [ %rd3 + 0 ];"
# The same accesses as those of the CUDA kernels' counter, and the same counts.
PROGRAMS = {
    "neighbours": at("shl.b32 %r4, %r2, 2;", LOAD),
    "one_word": at("mov.b32 %r4, 64;", LOAD),
    "stride_2": at("shl.b32 %r4, %r2, 3;", LOAD),
    "one_bank": at("shl.b32 %r4, %r2, 7;", LOAD),
    "quads": at("shl.b32 %r4, %r2, 4;", "ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r4];"),
    "padded": at("mul.lo.s32 %r4, %r2, 132;", "st.shared.b32 [%r4], %r2;"),
    "half_a_warp": at("shl.b32 %r4, %r2, 2;\nsetp.lt.u32 %p1, %r2, 16;", "@%p1 " + LOAD),
    "global": at("shl.b32 %r4, %r2, 2;", GLOBAL),
    "scattered": at("shl.b32 %r4, %r2, 6;", GLOBAL),
    "stored": at("shl.b32 %r4, %r2, 2;", "st.global.b32 [ %rd3 + 0 ], { %r2 };"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_warps_are_counted_as_those_of_the_cuda_kernels(name):
    counts = run(PROGRAMS[name])[0].counts
    assert (counts.blocks, counts.barriers) == (1, 1)
    counted = counts.longest_loads, counts.longest_passes, counts.new_sectors, counts.accesses
    assert counted == EXPECTED[name]


def test_a_block_waits_for_the_warp_with_most_to_do():
    """Between two barriers; and masked lanes make no access."""
    busy = "setp.ge.u32 %p1, %r1, {first};\n" + at("shl.b32 %r4, %r2, 7;", "@%p1 " + LOAD)
    both = "\n".join([busy.format(first=32), "bar.sync 0;", busy.format(first=48)])
    counts = run(both, blocks=3)[0].counts
    assert (counts.blocks, counts.barriers, counts.accesses) == (3, 6, 6)
    assert counts.longest_passes == 3 * (32 + 16)


LOOP = """
	mov.u32 	%r5, %ctaid.x;
	mov.b32 	%r6, 1;
	mov.b32 	%r7, 0;
$L__BB0_1:
	mad.lo.s32 	%r6, %r6, 3, %r1;
	add.s32 	%r7, %r7, 1;
	setp.le.s32 	%p1, %r7, %r5;
	@%p1 bra 	$L__BB0_1;
	mad.lo.s32 	%r4, %r5, 64, %r1;
	shl.b32 	%r4, %r4, 2;
	cvt.u64.u32 	%rd2, %r4;
	add.s64 	%rd3, %rd1, %rd2;
	st.global.b32 	[ %rd3 + 0 ], { %r6 };
"""


def test_blocks_go_round_their_loops_as_often_as_each_must():
    """Seven blocks, the n-th with n rounds."""
    machine, words = run(LOOP, blocks=7)
    for block in range(7):
        expected = np.ones(64, np.int32)
        for _ in range(block + 1):
            expected = expected * 3 + np.arange(64, dtype=np.int32)
        assert (words[64 * block : 64 * block + 64] == expected).all()
    rounds = sum(range(1, 8))
    assert machine.counts.instructions == 2 * (7 * (8 + 3 + 5 + 1) + 4 * rounds)


def stored(code: str, number: int = 0) -> np.ndarray:
    """What every thread has in ``%r10`` after some code."""
    store = at("shl.b32 %r4, %r1, 2;", "st.global.b32 [ %rd3 + 0 ], { %r10 };")
    return run(f"{code}\n{store}", number=number)[1][:64]


THREADS = np.arange(64)
FLOAT = "cvt.rn.f32.u32 %r20, %r1;\n"
RESULTS = {
    "sub.s32 %r10, %r1, 40;": THREADS - 40,
    "sub.s32 %r9, %r1, 40;\ndiv.s32 %r10, %r9, 7;": np.trunc((THREADS - 40) / 7),
    "sub.s32 %r9, %r1, 40;\nrem.s32 %r10, %r9, 7;": np.fmod(THREADS - 40, 7),
    "sub.s32 %r9, %r1, 40;\nshr.u32 %r10, %r9, 28;": np.where(THREADS < 40, 15, 0),
    "bfe.s32 %r10, %r1, 1, 2;": np.array([0, 1, -2, -1])[THREADS // 2 % 4],
    "bfe.u32 %r10, %r1, 1, 2;": THREADS // 2 % 4,
    "prmt.b32 %r10, %r1, 9, 0x7740U;": THREADS + 0x900,
    "ld.param.s32 %rd5, [some_kernel_param_1];\nshr.s64 %rd6, %rd5, 33;\ncvt.u32.u64 %r10, %rd6;": np.full(64, -1),
    "ld.param.b32 %r9, [some_kernel_param_1];\nmul.wide.s32 %rd5, %r9, %r1;\ncvt.u32.u64 %r10, %rd5;": -5 * THREADS,
    "shfl.sync.bfly.b32 %r10, %r1, 3, 31, -1;": THREADS ^ 3,
    "shfl.sync.up.b32 %r10, %r1, 4, 0, -1;": np.where(THREADS % 32 < 4, THREADS, THREADS - 4),
    "xor.b32 %r9, %r1, 1;\nshfl.sync.idx.b32 %r10, %r1, %r9, 31, -1;": THREADS ^ 1,
    FLOAT + "fma.rn.f32 %r21, %r20, 0f3F000000, 0fBF800000;\nabs.f32 %r10, %r21;": abs(THREADS.astype("f4") / 2 - 1),
    FLOAT + "setp.gt.f32 %p1, %r20, 0f40000000;\nselp.b32 %r10, %r1, -1, %p1;": np.where(THREADS > 2, THREADS, -1),
    FLOAT + "setp.leu.f32 %p1, %r20, 0f7FC00000;\nselp.b32 %r10, %r1, -1, %p1;": THREADS,
    FLOAT + "setp.le.f32 %p1, %r20, 0f7FC00000;\nselp.b32 %r10, %r1, -1, %p1;": np.full(64, -1),
    FLOAT + "cvt.f64.f32 %rd5, %r20;\nadd.f64 %rd6, %rd5, %rd5;\ncvt.rn.f32.f64 %r10, %rd6;": 2 * THREADS.astype("f4"),
}


@pytest.mark.parametrize("code", RESULTS)
def test_arithmetic(code):
    expected = RESULTS[code]
    dtype = np.float32 if expected.dtype == np.float32 else np.int32
    assert (stored(code, number=-5).view(dtype) == expected.astype(dtype)).all()


def test_matrices_are_loaded_word_by_word():
    """Lane t gets word t % 4 of row t // 4 of each matrix, whose rows lanes 8i to 8i + 7 name."""
    own = "shl.b32 %r4, %r1, 4;\nst.shared.v4.b32 [%r4], {%r1, %r1, %r1, %r1};\nbar.warp.sync -1;\n"
    code = own + "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r11, %r12, %r10, %r13}, [%r4];"
    assert (stored(code) == THREADS // 32 * 32 + 16 + THREADS % 32 // 4).all()


EXCHANGE = "shl.b32 %r4, %r1, 2;\nst.shared.b32 [%r4], %r1;\n{}xor.b32 %r5, %r4, {};\nld.shared.b32 %r10, [%r5];"


def test_a_missing_barrier_is_seen():
    assert (stored(EXCHANGE.format("bar.sync 0;\n", 128)) == (THREADS ^ 32)).all()
    assert (stored(EXCHANGE.format("", 64)) == (THREADS ^ 16)).all(), "within a warp none is needed"
    with pytest.raises(RuntimeError, match="another has written since the last barrier"):
        stored(EXCHANGE.format("", 128))
    with pytest.raises(RuntimeError, match="another has accessed since the last barrier"):
        stored(EXCHANGE.format("bar.sync 0;\n", 128) + "\nst.shared.b32 [%r4], 7;")
    with pytest.raises(RuntimeError, match="two warps write different values"):
        run("st.shared.b32 [%r3+8], %r1;")


def test_threads_of_a_warp_that_write_one_word_are_counted_where_they_disagree():
    assert run("setp.lt.u32 %p1, %r1, 4;\n@%p1 st.shared.b32 [%r3+8], %r1;")[0].disagreements == 3
    assert run("st.shared.b32 [%r3+8], 5;")[0].disagreements == 0


@pytest.mark.parametrize("address", ["mov.b32 %r4, -4;", "shl.b32 %r4, %r1, 9;"])
def test_an_access_outside_of_all_tensors_is_seen(address):
    with pytest.raises(RuntimeError, match="outside of all tensors"):
        run(at(address, GLOBAL))


def test_what_was_not_built_is_refused():
    apart = "setp.lt.u32 %p1, %r2, 16;\n@%p1 bra $L__BB0_1;\nmov.b32 %r9, 0;\n$L__BB0_1:"
    for code in (apart, "ex2.approx.f32 %r9, %r1;", "mul.hi.s32 %r9, %r1, %r1;"):
        with pytest.raises(NotImplementedError):
            run(code)


def test_shared_memory_that_nobody_wrote_is_counted_where_it_is_read():
    assert run(PROGRAMS["neighbours"])[0].reads_of_unwritten == 64
    assert run(EXCHANGE.format("bar.sync 0;\n", 128))[0].reads_of_unwritten == 0
