"""Kernel launches as data: what to launch, with which arguments, in which order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """One kernel launch: everything that the JIT compiler specialises on, and the grid."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    options: dict[str, Any]

    def run(self) -> None:
        """Launch on the current stream of the current device."""
        self.kernel[self.grid](**self.arguments, **self.options)


@dataclass(frozen=True)
class LaunchSequence:
    """Launches in order, and what turns their outputs into the caller's."""

    launches: tuple[Launch, ...]
    finish: Callable[[], Any]

    def zeroed(self) -> list[Tensor]:
        """What PyTorch zeroes before the launches, each tensor once: marks of the slabs' rows."""
        arguments = [launch.arguments for launch in self.launches]
        return list({id(a["begun"]): a["begun"] for a in arguments if "begun" in a}.values())

    def run(self) -> Any:
        for launch in self.launches:
            launch.run()
        return self.finish()
