"""The host's part of the launch table's refresh: candidates, what the compiler says of them, and the lines printed."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import tune
from benchmarks.static import STATIC_CASES
from scp_kernels.backends.triton import interpreting, tables

pytestmark = pytest.mark.skipif(interpreting(), reason="TRITON_INTERPRET=1 leaves nothing to compile")


@pytest.mark.parametrize("kernel", tune.KERNELS)
def test_candidates_are_distinct(kernel):
    problem = STATIC_CASES["h256"].problem
    candidates = list(tune.candidates(kernel, problem, 90))
    assert len(candidates) == len(set(candidates)) >= 16
    configured = tables.find_configuration(kernel, 90, problem.hidden, 32, 4, "ieee")
    assert candidates[0] == configured, "what the table has is always among what is timed"


@pytest.mark.parametrize("capability", [75, *(pytest.param(n, marks=pytest.mark.thorough) for n in (80, 90))])
def test_what_fits_is_told_from_what_spills(capability, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))
    good = tables.Configuration((4, 16), 16, 32, 8, max_registers=128)
    bad = tables.Configuration((8, 8), 8, 32, 2, max_registers=32)
    before = tables.TABLE
    assert tune.fits(tables.FORWARD, good, STATIC_CASES["h64"].problem, capability)
    assert not tune.fits(tables.FORWARD, bad, STATIC_CASES["h64"].problem, capability)
    assert before is tables.TABLE


def test_a_printed_entry_is_one_of_the_table(monkeypatch):
    configuration = tables.Configuration((8, 8), 32, 32, 4)
    text = tune.entry(tables.FORWARD, configuration, STATIC_CASES["h256"].problem, 90)
    (entry,) = eval(f"({text})", vars(tables))
    monkeypatch.setattr(tables, "TABLE", (entry, *tables.TABLE))
    assert tables.find_configuration(tables.FORWARD, 90, (256, 256), 32, 4, "ieee") == configuration
    assert tables.find_configuration(tables.FORWARD, 80, (256, 256), 32, 4, "ieee") != configuration
    assert tables.find_configuration(tables.FORWARD, 90, (256, 256), 16, 4, "ieee") != configuration


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit):
        tune.main([])
    assert "no CUDA device to measure on" in capsys.readouterr().err
