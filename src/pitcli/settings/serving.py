"""Settings of pit serve."""

from typing import Annotated

from pydantic import Field

from pitcli.settings.facts import Fact, Section
from pitcli.settings.generating import ImproveConfig, ImprovingSettings


class ServeConfig(ImprovingSettings):
    """pit serve: improve drafts over HTTP, through OpenAI's API and on a page."""

    section = Section.server

    upstream: Annotated[str | None, Fact.text, Section.common] = Field(
        None,
        description="URL of an OpenAI-compatible server that writes drafts, e.g. http://localhost:11434/v1; its key "
        "is read from OPENAI_API_KEY [default: none; requests bring their drafts]",
    )
    port: Annotated[int, Section.common] = Field(8000, ge=0, le=65535, description="Port; 0 for any free port")
    host: Annotated[str, Fact.text] = Field(
        "127.0.0.1", description="Address to listen on; 0.0.0.0 for all networks, which --api-key should protect"
    )
    api_key: Annotated[str | None, Fact.text] = Field(
        None, description="Key that clients must send [default: the variable PIT_API_KEY; if not set, no key is needed]"
    )
    collect: Annotated[str | None, Fact.output, Section.output] = Field(
        None,
        description="File to which the page appends a preference pair when somebody keeps the better response; pit "
        "prepare reads it [default: nothing is collected]",
    )
    max_requests: int = Field(
        256, ge=1, description="Maximum number of requests that run or wait; any more are answered with 429"
    )
    request_timeout: float = Field(
        300.0, gt=0, description="Seconds until a request is answered with its best response so far, or with 504"
    )
    max_body: int = Field(1024, ge=1, description="Maximum size of a request in KiB; larger ones are answered with 413")
    grace: float = Field(
        30.0,
        ge=0,
        description="Seconds that requests may still take after Ctrl-C or SIGTERM; a second signal ends them",
    )
    log_prompts: Annotated[bool, Section.output] = Field(
        False, description="Write prompts and responses to the log, which otherwise has none of their text"
    )
    sample_batch_size: Annotated[int, Section.hardware] = Field(
        16, ge=1, description="Number of drafts improved together; the others wait"
    )

    def improving(self) -> ImproveConfig:
        """The settings of an improvement by PIT, with those that were given explicitly."""
        shared = ImprovingSettings.model_fields.keys()
        return ImproveConfig(**{name: getattr(self, name) for name in shared if name in self.model_fields_set})
