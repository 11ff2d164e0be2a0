"""Fresh memory that shows: what a kernel leaves unwritten, or reads before it writes it."""

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Memory that ``torch.empty`` gives is NaN (or huge), not what happened to lie there; import it to use it."""

    poison(monkeypatch, torch.nan, None)


def poison(monkeypatch: pytest.MonkeyPatch, value: float, integer: int | None) -> None:
    """Fills the memory that ``torch.empty`` gives; integers with their largest where ``integer`` is None."""

    def filled(function):
        def made(*args, **kwargs) -> torch.Tensor:
            tensor = function(*args, **kwargs)
            if tensor.is_floating_point():
                return tensor.fill_(value)
            return tensor.fill_(torch.iinfo(tensor.dtype).max if integer is None else integer)

        return made

    # PyTorch remembers, at the first use of a device as a context, which functions make tensors: the true ones.
    with torch.device("cpu"):
        torch.empty(0)
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, filled(getattr(torch, name)))
