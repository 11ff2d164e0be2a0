"""Machine code is counted by what its instructions occupy, from barrier to barrier."""

import pytest

from benchmarks import cycles, sass
from tests.benchmarks.test_cycles import needs_gcc
from tests.support.cases import Case

LISTING = """
	code for sm_75
		Function : _ZN3scp6common3_GLOBAL__N__a_10_kernels_cu_deabe7a410scp_kernelINS0_5ApplyIfLi2ELi1EEEEEvT_
	.headerflags	@"EF_CUDA_SM75"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;      /* 0x00000a00ff017624 */
                                                                                /* 0x000fe400078e00ff */
        /*0010*/              @!P0 LDG.E.64.SYS R2, [R4] ;                      /* 0x00000a00ff017624 */
        /*0020*/                   DFMA R2, R2, R4, R6 ;                        /* 0x00000a00ff017624 */
        /*0030*/                   BAR.SYNC 0x0 ;                               /* 0x00000a00ff017624 */
        /*0040*/             @UP0 LDS.U.128 R4, [R8] ;                          /* 0x00000a00ff017624 */
        /*0050*/                   FFMA R2, R2, R4, R6 ;                        /* 0x00000a00ff017624 */
        /*0060*/                   FADD.FTZ R2, R2, R4 ;                        /* 0x00000a00ff017624 */
        /*0070*/                   STG.E.SYS [R2], R4 ;                         /* 0x00000a00ff017624 */
        /*0080*/                   EXIT ;                                       /* 0x00000a00ff017624 */
        /*10090*/                  NOP ;                                        /* 0x00000a00ff017624 */
		Function : _ZN6someones5OtherEv
        /*0000*/                   FFMA R2, R2, R4, R6 ;                        /* 0x00000a00ff017624 */
"""


def test_phases_of_a_listing():
    (mix,) = sass.mixes(LISTING)
    assert (mix.kernel, mix.dtype, mix.axes) == ("Apply1", "float32", 2)
    assert mix.phases == ({"other": 1, "LDG": 1, "FP64": 1, "BAR": 1}, {"LDS": 1, "FFMA": 2, "STG": 1, "other": 1})
    assert mix.together.total() == 9 and mix.instructions_per_access == 9 / 3


@needs_gcc
def test_what_is_issued_bounds_the_cycles():
    """All warps' accesses times 9 / 3 instructions for each, by 4 schedulers of 30 multiprocessors."""
    counts = cycles.simulate(Case(16, 4, 2, (16, 32)), backward=False)[-1]
    kernel = cycles.static_cuda.Kernel("Apply1", "float32", 2, 75, 128, 0, 0)
    launch = cycles.launch_of(counts, [kernel], list(sass.mixes(LISTING)))
    assert launch.issue == pytest.approx(counts.accesses * 3 / 120)
    assert counts.accesses > counts.longest_loads + counts.blocks
    assert cycles.predicted(launch) >= launch.issue
