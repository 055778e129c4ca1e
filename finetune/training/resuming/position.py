"""`Position`: how far a run has come."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass
class Position:
    """Position in a run, in counts of completed work.

    Attributes:
        phase: Index of the phase.
        epoch: Number of epochs in the phase.
        window: Number of updates attempted in the epoch.
        step: Number of optimizer updates in the phase.
        tried: Index of the update whose rates are set in the parameter groups.
        begun: Number of optimizer updates in the phase before this epoch.
    """

    phase: int = 0
    epoch: int = 0
    window: int = 0
    step: int = 0
    tried: int = 0
    begun: int = 0

    def next_epoch(self) -> Position:
        """Return the position at the beginning of the next epoch."""
        return replace(self, epoch=self.epoch + 1, window=0, begun=self.step)
