"""A stand-in for a backend that this machine may have and a test must not use."""


class UnavailableBackend:
    device_type = "cpu"

    def __init__(self, name: str) -> None:
        self.name = name

    def unavailable_reason(self) -> str:
        return "left out of this test"

    unsupported_reason = unavailable_reason
