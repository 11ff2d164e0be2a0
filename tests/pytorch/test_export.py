"""torch.export, AOTInductor and ONNX: what leaves Python computes what the module computed."""

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from scp_kernels import FusedSCP
from tests.support.backend_names import BACKENDS, COMPILED_BACKENDS, device_of
from tests.support.heads import make_head
from tests.support.problems import make_inputs
from tests.support.tolerances import LOGITS, relative_error

SIZES = [(3, 4, 20, 24), (1, 4, 20, 24), (5, 4, 31, 17), (2, 4, 64, 7)]
DYNAMIC = {"features": {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}}


def head_of(backend: str) -> FusedSCP:
    return make_head(backend, bias=True).eval()


def features_of(*size: int) -> Tensor:
    return make_inputs(size[2:], batch=size[0], channels=size[1], seed=1).features


def agrees(function, head: FusedSCP, sizes: list[tuple[int, ...]]) -> None:
    for size in sizes:
        features = features_of(*size).to(head.residual.weight.device)
        with torch.no_grad():
            assert relative_error(torch.as_tensor(function(features)), head(features)) <= LOGITS[torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_exported_saved_and_loaded(backend, dynamic, strict, tmp_path):
    head = head_of(backend)
    sizes = SIZES if dynamic else SIZES[:1]
    example = features_of(*sizes[0]).to(device_of(backend))
    program = torch.export.export(head, (example,), dynamic_shapes=DYNAMIC if dynamic else None, strict=strict)
    torch.export.save(program, tmp_path / "head.pt2")
    loaded = torch.export.load(tmp_path / "head.pt2")
    agrees(loaded.module(), head, sizes)
    operators = {str(node.target) for node in loaded.graph.nodes}
    assert ("scp_kernels.scp_forward.default" in operators) == (backend != "reference")


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_aot_inductor(backend, tmp_path):
    """Runs in a process that has imported scp_kernels: its operators are registered from Python."""
    head = head_of(backend)
    example = features_of(*SIZES[0]).to(device_of(backend))
    program = torch.export.export(head, (example,), dynamic_shapes=DYNAMIC)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "head.pt2"))
    agrees(torch._inductor.aoti_load_package(package), head, SIZES)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_onnx_through_the_reference(backend, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    head = head_of("reference")
    head.backend = backend
    program = torch.onnx.export(head, (features_of(*SIZES[0]),), dynamo=True, dynamic_shapes=DYNAMIC, verbose=False)
    program.save(tmp_path / "head.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx", providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()
    agrees(lambda features: session.run(None, {argument.name: features.numpy()})[0], head, SIZES)
