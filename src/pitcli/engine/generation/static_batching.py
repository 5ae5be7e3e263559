"""Static batching: requests run together until the last has ended; for bases that do not accept pit's masks."""

from collections.abc import Sequence
from typing import NamedTuple

from pitcli.engine.generation.sampling import Decoding, Sample, generate
from pitcli.engine.models.roles import RoleModel


class Request(NamedTuple):
    """A response to generate.

    prompt: the token ids that it continues. seed: of its random draws. decoding: None for that of the batching.
    """

    prompt: list[int]
    seed: int
    decoding: Decoding | None = None


class StaticBatching:
    """The interface of ContinuousBatching with batches of at most `slots` requests."""

    def __init__(self, model: RoleModel, role: str | None, decoding: Decoding, slots: int) -> None:
        self.model, self.role, self.decoding, self.slots = model, role, decoding, slots
        self.refill = slots
        self._admitted: list[tuple[int, Request]] = []

    def free(self) -> int:
        """Return how many requests can be admitted now."""
        return self.slots - len(self._admitted)

    def admit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Queue (key, request) pairs for the next `run`."""
        self._admitted += requests

    def run(self, until: int) -> list[tuple[int, Sample]]:
        """Run every admitted request to its end, whatever `until` is; return the (key, sample) of each."""
        by_decoding: dict[Decoding, list[tuple[int, Request]]] = {}
        for key, request in self._admitted:
            by_decoding.setdefault(request.decoding or self.decoding, []).append((key, request))
        self._admitted = []
        ended: list[tuple[int, Sample]] = []
        for decoding, admitted in by_decoding.items():
            prompts, seeds = [request.prompt for _, request in admitted], [request.seed for _, request in admitted]
            samples = generate(self.model, self.role, prompts, seeds, decoding)
            ended += [(key, sample) for (key, _), sample in zip(admitted, samples, strict=True)]
        return ended

    def advance(self) -> list[tuple[int, Sample]]:
        """Run every admitted request to its end."""
        return self.run(self.slots)

    def drop(self, key: int) -> None:
        """Forget an admitted request; nothing happens if there is none with this key."""
        self._admitted = [admitted for admitted in self._admitted if admitted[0] != key]
