"""Environment variables of the compiled CPU backend."""

import pytest

from scp_kernels import available_backends, scp
from scp_kernels.backends import cpu
from tests.support.cpu_settings import needs_cpu
from tests.support.problems import make_inputs

pytestmark = [needs_cpu, pytest.mark.usefixtures("empty_weight_field_cache")]

VARIABLES = (cpu.ISA_VARIABLE, cpu.METHOD_VARIABLE, cpu.CACHE_VARIABLE)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (cpu.ISA_VARIABLE, "mmx", "SCP_CPU_ISA: expected one of"),
        (cpu.METHOD_VARIABLE, "fast", "SCP_CPU_METHOD: expected one of"),
        (cpu.CACHE_VARIABLE, "much", "SCP_CPU_KEEP_MB: expected a number"),
    ],
)
def test_the_environment_is_checked(monkeypatch, variable, value, message):
    monkeypatch.setattr(cpu, "settings", cpu.settings.__wrapped__)  # as before the first call
    assert available_backends()["cpu"].usable
    monkeypatch.setenv(variable, value)
    assert message in available_backends()["cpu"].reason
    inputs = make_inputs()
    for backend in ("auto", "cpu"):
        with pytest.raises(ValueError, match=message):
            scp(inputs.features, inputs.phi, inputs.residual, backend=backend)


def test_the_former_name_of_the_isa_target_is_deprecated(monkeypatch):
    monkeypatch.delenv(cpu.ISA_VARIABLE, raising=False)
    monkeypatch.setenv("SCP_CPU_LEVEL", "portable")
    with pytest.warns(DeprecationWarning, match=r"SCP_CPU_LEVEL is now SCP_CPU_ISA; the old name goes in version 0\.2"):
        options = cpu.settings.__wrapped__()
    assert options.isa_target == cpu.ISA_TARGETS["portable"]
    monkeypatch.setenv(cpu.ISA_VARIABLE, "avx2")
    assert cpu.settings.__wrapped__().isa_target == cpu.ISA_TARGETS["avx2"]


def test_the_environment_is_followed(monkeypatch):
    for variable, value in zip(VARIABLES, ("portable", "dense", "3"), strict=True):
        monkeypatch.setenv(variable, value)
    options = cpu.settings.__wrapped__()
    assert options == cpu.Settings(cpu.ISA_TARGETS["portable"], cpu.METHODS["dense"], 3 << 20)
