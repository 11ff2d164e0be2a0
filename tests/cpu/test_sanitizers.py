"""The CPU backend's own tests, on a build of it with AddressSanitizer and UndefinedBehaviorSanitizer.

The sources of this checkout are compiled with the flags of the installed library, the sanitizers added. Scratch memory
is poisoned where it is not handed out (csrc/cpu/scratch.h), so that an array that is too short is found there too. The
build takes a minute or two and is kept in pytest's cache until a source or a flag changes.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scp_kernels.backends import _libraries
from tests.support.processes import ROOT, run_python

SOURCES = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
HEADERS = sorted(path for path in (ROOT / "csrc").rglob("*.h"))
# What is left out of "undefined" would triple the build's time; AddressSanitizer sees the accesses that it is about.
SANITIZERS = [
    *("-fsanitize=address,undefined", "-fno-sanitize=null,alignment,vptr,object-size,pointer-overflow"),
    *("-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1"),
]
RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so")

RECORD = _libraries.build_record()["cpu"]
pytestmark = [
    pytest.mark.skipif(not RECORD["built"], reason=f"the CPU backend was not built: {RECORD.get('reason')}"),
    pytest.mark.xdist_group("cpu_sanitizers"),  # one library for them all
]

UNFINISHED = "unfinished-"


def compiler() -> list[str]:
    name = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if name is None:
        pytest.skip("no C++ compiler")
    return shlex.split(name)


def runtimes(command: list[str]) -> list[str]:
    """The sanitizers' shared libraries, to be loaded before Python's own."""
    paths = []
    for name in RUNTIMES:
        path = subprocess.run([*command, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not Path(path).is_absolute():
            pytest.skip(f"{shlex.join(command)} has no shared {name}")
        paths.append(path)
    return paths


def compile_everything(folder: Path, command: list[str], flags: list[str]) -> None:
    objects = []
    for source in SOURCES:
        targets = RECORD["variants"] if source.name == "kernels.cpp" else {"": []}
        for target, extra in targets.items():
            path = folder / f"{source.stem}{target}.o"
            define = [f"-DSCP_ISA_TARGET={target}"] if target else []
            objects.append((path, [*command, *flags, *define, *extra, "-c", str(source), "-o", str(path)]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = pool.map(lambda job: subprocess.run(job[1], capture_output=True, text=True), objects)
        for result in jobs:
            assert result.returncode == 0, result.stderr
    linked = folder / "libscp_cpu.so.part"
    names = [str(path) for path, _ in objects]
    link = [*command, "-shared", "-fopenmp", *SANITIZERS, *names, "-o", str(linked)]
    subprocess.run(link, check=True, capture_output=True)
    for path, _ in objects:
        path.unlink()
    linked.rename(folder / "libscp_cpu.so")


@pytest.fixture(scope="module")
def sanitized(request) -> dict[str, Any]:
    """Options of a process that runs the package with the sanitized library of this checkout."""
    command = compiler()
    preloaded = runtimes(command)
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    flags = ["-O1" if flag == "-O3" else flag for flag in RECORD["flags"]] + ["-w", *includes, *SANITIZERS]
    key = hashlib.sha256(repr((command, flags, RECORD["variants"])).encode())
    for path in (*SOURCES, *HEADERS):
        key.update(path.read_bytes())
    cache = request.config.cache.mkdir("scp-sanitized")
    place = cache / key.hexdigest()[:16]
    folder = place / _libraries.PACKAGE
    if not (folder / "libscp_cpu.so").exists():
        # Made aside and then put into its place whole: another process may be at it too.
        for old in cache.iterdir():
            if old != place and not old.name.startswith(UNFINISHED):
                shutil.rmtree(old, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=cache))
        made = unfinished / _libraries.PACKAGE
        made.mkdir()
        (made / "__init__.py").touch()
        (made / "build.json").write_text(json.dumps(_libraries.build_record()))
        compile_everything(made, command, flags)
        try:
            unfinished.rename(place)
        except OSError:
            shutil.rmtree(unfinished)
            assert (folder / "libscp_cpu.so").exists()
    env = {
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep what they allocate
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    return {"env": env, "first": place}


def test_the_suite_of_the_cpu_backend(sanitized):
    # pytest captures nothing (-s): a report must outlive the process that it ends.
    command = ["-m", "pytest", "-x", "-q", "-s", "-p", "no:cacheprovider"]
    command += [ROOT / "tests" / "cpu" / name for name in ("test_backend.py", "test_weight_field_cache.py")]
    # AddressSanitizer's own allocator may be locked when another thread forks, and stays so in the child; and it ends
    # a process that has too little memory.
    command += ["-k", "not forked_among_threads and not runs_out_of_memory"]
    result = run_python(*command, **sanitized, timeout=900, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-8000:]
    assert " passed" in result.stdout


READ_TOO_FAR = """
import torch
from scp_kernels.backends import cpu
from scp_kernels.problem import Problem, SCPInputs
print(cpu._library()._name)
problem = Problem(1, 3, 1, (8, 4096), (20, 20), 1, torch.float32, torch.float32, torch.device("cpu"))
shapes = ((1, 3, 20, 20), (1, 3), (8, 4), (8,), (4, 8), (4,), (3, 4), (3,))
x, residual, *phi = (torch.zeros(shape) for shape in shapes)
matrix = torch.zeros(4, 3, dtype=torch.float64)
cpu.CpuBackend().forward(SCPInputs(x, tuple(phi), residual, None, matrix, problem))
"""


def test_an_error_would_be_seen(sanitized):
    """Parameters shorter than the call says: the sanitized library stops at the first read behind them."""
    result = run_python("-c", READ_TOO_FAR, **sanitized, check=False)
    assert "scp-sanitized" in result.stdout
    assert result.returncode != 0 and "AddressSanitizer: heap-buffer-overflow" in result.stderr, result.stderr[-4000:]
