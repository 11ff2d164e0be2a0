"""A backend that a test leaves out."""


class LeftOut:
    device_type = "cpu"

    def __init__(self, name: str) -> None:
        self.name = name

    def unavailable_reason(self) -> str:
        return "left out of this test"

    unsupported_reason = unavailable_reason
