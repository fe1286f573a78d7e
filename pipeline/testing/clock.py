"""Time that goes by only when a test says so."""


class ManualClock:
    """Seconds since the epoch (contracts.Clock), standing still between calls of `advance`."""

    def __init__(self, start_s: float = 1_700_000_000.0) -> None:
        self._now_s = start_s

    def __call__(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Let time go by. Raises ValueError for a step back."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self._now_s += seconds
