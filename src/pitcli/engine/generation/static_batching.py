"""Static batching: requests written together, until the last has ended; for bases that take no masks of ours."""

from collections.abc import Sequence
from typing import NamedTuple

from pitcli.engine.generation.sampling import Decoding, Sample, generate
from pitcli.engine.models.roles import RoleModel


class Request(NamedTuple):
    """A response to be written: the tokens that it goes on from, and the seed of its draws."""

    prompt: list[int]
    seed: int


class StaticBatching:
    """The interface of ContinuousBatching, with `slots` requests at most in each batch."""

    def __init__(self, model: RoleModel, role: str | None, decoding: Decoding, slots: int) -> None:
        self.model, self.role, self.decoding, self.slots = model, role, decoding, slots
        self.refill = slots
        self._admitted: list[tuple[int, Request]] = []

    def free(self) -> int:
        return self.slots - len(self._admitted)

    def admit(self, requests: Sequence[tuple[int, Request]]) -> None:
        self._admitted += requests

    def run(self, until: int) -> list[tuple[int, Sample]]:
        """All that was admitted, whatever `until` says."""
        admitted, self._admitted = self._admitted, []
        if not admitted:
            return []
        prompts, seeds = [request.prompt for _, request in admitted], [request.seed for _, request in admitted]
        samples = generate(self.model, self.role, prompts, seeds, self.decoding)
        return [(key, sample) for (key, _), sample in zip(admitted, samples, strict=True)]
