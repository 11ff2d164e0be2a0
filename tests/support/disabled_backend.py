"""A backend that a test disables."""


class DisabledBackend:
    device_type = "cpu"

    def __init__(self, name: str) -> None:
        self.name = name

    def unusable(self) -> str:
        return "disabled by this test"

    cannot_run = unusable
