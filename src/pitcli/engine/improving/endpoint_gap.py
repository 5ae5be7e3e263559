"""The gap model at a server that scores: vLLM with an exported gap model, through its classification API.

The server gets token ids, so that it reads exactly what the gap model was trained on, and no text in a row can become a
control token. It must return the score itself, not a probability.
"""

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import torch

from pitcli.console import warn
from pitcli.data.rows import Comparison
from pitcli.data.templates import ChatFormat
from pitcli.endpoints.client import ABOUT_THE_REQUEST, Client, Endpoint, all_of, open_client
from pitcli.endpoints.replies import NoReply
from pitcli.engine.models.forward import probe_tokens
from pitcli.engine.models.gaps import both_orders, scoring_tree
from pitcli.engine.models.roles import GAP
from pitcli.equations import symmetrised_gap
from pitcli.errors import RunError, SettingsError
from pitcli.runs.earlier import EarlierRun, gap_loss_of, gap_temperatures

MOST_DRIFT = 0.1  # of the probe's score, relative to it or absolute, whichever is more: a server computes in bf16
NOT_FOUND = "has no classification API (404); serve the exported gap model by vLLM, and give the URL without a path"


class EndpointGapModel:
    """The interface of GapModel that the scheduler uses, with scores from a server; one gap model, no ensemble."""

    def __init__(self, client: Client, runner: asyncio.Runner, chat: ChatFormat, run: EarlierRun) -> None:
        self._client, self._runner, self._chat = client, runner, chat
        self._loss = gap_loss_of(run.manifest)
        self._temperature = gap_temperatures(run.manifest)[GAP]

    def gaps_with_std(self, comparisons: Sequence[Comparison]) -> tuple[list[float], None]:
        """Return the gaps / T; NaN if the server refuses a comparison, for example because it is too long for it."""
        return self._runner.run(all_of(map(self._gap, comparisons))), None

    async def _gap(self, comparison: Comparison) -> float:
        prompt, response, reference = comparison
        if response == reference:
            return 0.0
        conversations = scoring_tree(prompt, [response], reference, self._chat, self._loss).conversations()
        try:
            scores_N = torch.tensor(await self.scores(conversations))
        except NoReply as problem:
            if problem.status in ABOUT_THE_REQUEST:
                warn(f"{self._client.endpoint.option}: {problem.reason}")
                return math.nan
            raise RunError(f"{self._client.endpoint.option}: {problem.reason}; {self._client.endpoint.kept}") from None
        scores_12 = both_orders(scores_N, self._loss)
        return float(symmetrised_gap(scores_12[:, 0], scores_12[:, 1])) / self._temperature

    async def scores(self, conversations: Sequence[list[int]]) -> list[float]:
        """Return the score of each conversation, given as token ids."""
        body = {"input": conversations, "use_activation": False, "add_special_tokens": False}
        return await self._client.post("/classify", body, lambda answer: _scores(answer, len(conversations)))

    def check(self, saved: float, vocabulary: int) -> None:
        """Raise RunError if the server's score of fixed tokens is not the one that the run saved."""
        option = self._client.endpoint.option
        try:
            (found,) = self._runner.run(self.scores([probe_tokens(vocabulary)]))
        except NoReply as problem:
            raise RunError(f"{option}: {problem.reason}; expected vLLM's classification API") from None
        if abs(found - saved) <= MOST_DRIFT * max(1.0, abs(saved)):
            return
        as_probability = abs(found - 1 / (1 + math.exp(-saved))) < 0.02
        remedy = (
            "it returns probabilities; use a version of vLLM that reads use_activation"
            if as_probability
            else "serve what pit export --role gap wrote of this run"
        )
        raise RunError(
            f"{option}: expected a score of {saved:.4g} for the run's fixed tokens, got {found:.4g}; {remedy}"
        )


def _scores(answer: Any, count: int) -> list[float] | None:
    """Read the scores of vLLM's ClassificationResponse, in the order of the inputs."""
    match answer:
        case {"data": [*rows]} if len(rows) == count:
            found = {
                row["index"]: float(row["probs"][0])
                for row in rows
                if isinstance(row, dict) and isinstance(row.get("probs"), list) and len(row["probs"]) == 1
            }
            if found.keys() == set(range(count)):
                return [found[index] for index in range(count)]
    return None


@contextmanager
def open_endpoint_gap(
    endpoint: Endpoint, chat: ChatFormat, run: EarlierRun, vocabulary: int
) -> Iterator[EndpointGapModel]:
    """Yield the gap model of a run at a server, after a check that the server has that one."""
    if len(run.gap_models()) > 1:
        raise SettingsError(f"--gap-url: {run.folder} has several gap models; remove --gap-url, so that pit runs them")
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        model = EndpointGapModel(runner.run(stack.enter_async_context(open_client(endpoint))), runner, chat, run)
        try:
            model.check(run.manifest.probes[GAP][0], vocabulary)
            yield model
        finally:
            runner.run(stack.aclose())
