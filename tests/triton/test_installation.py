"""What stands in Triton's place on the path, and is not Triton: reported with the reason, and never chosen."""

from pathlib import Path

import pytest

from tests.support.processes import run_python

# The interpreter takes away that there is no GPU; the device type lets "auto" consider the backend on the CPU.
ASK = """
import torch
from scp_kernels import BackendUnavailable, FusedSCP, available_backends, dispatch
dispatch.BACKENDS["triton"].device_type = "cpu"
status = available_backends()["triton"]
assert not status.usable
FusedSCP(4)(torch.ones(1, 4, 3, 3))
try:
    FusedSCP(4, backend="triton")(torch.ones(1, 4, 3, 3))
except BackendUnavailable as error:
    assert status.reason in str(error)
else:
    raise AssertionError("it ran")
print(status.reason)
"""
# An installed package stands before a folder of its name wherever both lie on the path.
FOLDER = """
import importlib.machinery, sys
class Folder:
    def find_spec(self, name, path=None, target=None):
        if name == "triton":
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = ["/srv/models/triton"]
            return spec
        if name.startswith("triton."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Folder())
"""
NO_MODULE = """
import sys, types
sys.modules["triton"] = types.ModuleType("triton")
"""


def reason(code: str, path: Path | None = None) -> str:
    done = run_python("-c", code, env={"TRITON_INTERPRET": "1", "SCP_BACKEND": None}, first=path)
    return done.stdout.strip()


def test_a_folder_of_its_name_is_not_triton():
    expected = "Triton is not installed; /srv/models/triton has its name and is a folder without a package"
    assert reason(FOLDER + ASK) == expected


def test_a_module_without_a_spec_is_not_triton():
    assert reason("import torch" + NO_MODULE + ASK).startswith("Triton is not installed (")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("raise ImportError('libLLVM.so: cannot open shared object file')", "ImportError: libLLVM.so: cannot open"),
        ("__version__ = '3.9.0'", "ModuleNotFoundError: No module named 'triton."),
        ("", "AttributeError: module 'triton' has no attribute '__version__'"),
        ("__version__ = '3.5.1'", "Triton 3.5.1 is too old for these kernels; 3.6 is the oldest"),
        ("__version__ = 'nightly'", "Triton nightly is too old"),
    ],
    ids=["broken", "half", "no version", "old", "no number"],
)
def test_a_triton_that_cannot_be_used_says_why(tmp_path, source, expected):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(source)
    assert expected in reason(ASK, tmp_path)


def test_an_installed_triton_is_usable():
    pytest.importorskip("triton")
    code = "from scp_kernels import available_backends; print(available_backends()['triton'])"
    assert reason(code) == "usable"


@pytest.mark.parametrize("home", ["/proc/nobody", "/dev/null", "writable", None])
def test_a_cache_that_cannot_be_written_is_replaced(tmp_path, home):
    """A container that runs as another user; Triton itself would raise at the first launch."""
    pytest.importorskip("triton")
    code = """
from scp_kernels import available_backends
assert available_backends()["triton"].usable
import triton, pathlib
folder = pathlib.Path(triton.knobs.cache.dir)
folder.mkdir(parents=True, exist_ok=True)
print(folder)
"""
    env = {"TRITON_INTERPRET": "1", "SCP_BACKEND": None, "TRITON_CACHE_DIR": None, "TRITON_HOME": None}
    env |= {"HOME": str(tmp_path) if home == "writable" else home or "~", "TMPDIR": str(tmp_path)}
    done = run_python("-c", code, env=env)
    folder = Path(done.stdout.strip())
    if home == "writable":
        assert folder == tmp_path / ".triton" / "cache" and "RuntimeWarning" not in done.stderr
    else:
        assert folder.parent == tmp_path and folder.name.startswith("scp_kernels-triton-")
        assert "Triton cannot keep compiled kernels there" in done.stderr
        assert not folder.exists()  # the process has ended
