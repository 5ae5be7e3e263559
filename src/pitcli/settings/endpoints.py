"""Settings of the commands whose writer may be a model behind an OpenAI-compatible endpoint."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from pitcli.settings.base import Settings
from pitcli.settings.facts import Fact, Section
from pitcli.settings.values import Addresses, split_commas

OPENAI = "openai:"


class WriterSettings(Settings):
    """Settings of a writer behind an endpoint; its key is read from the environment."""

    section = Section.endpoints

    writer: Annotated[str | None, Fact.text] = Field(
        None,
        description="openai:MODEL: the model by this name at --base-url writes the responses, through the "
        "OpenAI-compatible API that vLLM, SGLang, llama.cpp and Ollama have; the key is in OPENAI_API_KEY [default: a "
        "model in this process writes]",
    )
    base_url: Annotated[Addresses, Fact.text | Fact.execution] = Field(
        None,
        description="URL of the endpoint of --writer, e.g. http://localhost:8000/v1, or several of the same model, "
        "comma-separated: each request goes to the one with the fewest in flight [default: OpenAI's]",
    )
    concurrency: Annotated[int, Fact.execution] = Field(
        16, ge=1, description="Maximum number of requests at the same time, per URL"
    )
    request_timeout: Annotated[float, Fact.execution] = Field(
        300.0, gt=0, description="Seconds to wait for a reply before the request is sent again"
    )

    def base_urls(self) -> tuple[str, ...]:
        return tuple(split_commas(self.base_url or ""))

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.writer is None:
            if self.base_url is not None:
                yield "--base-url is the address of --writer openai:MODEL, which is not given"
        elif not self.writer.startswith(OPENAI) or not self.writer.removeprefix(OPENAI).strip():
            yield f"--writer: expected openai:MODEL, got {self.writer}"
