"""Opens what pit improve works with: a writer and a gap model, each in this process or at an endpoint."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from transformers import AutoConfig

from pitcli.endpoints.client import Endpoint, check_addresses
from pitcli.engine.generation.endpoint import EndpointBatching, EndpointWriter, endpoint_of
from pitcli.engine.generation.methods import LocalWriter
from pitcli.engine.generation.sampling import Decoding
from pitcli.engine.improving.endpoint_gap import NOT_FOUND, EndpointGapModel, open_endpoint_gap
from pitcli.engine.improving.models import Models
from pitcli.engine.improving.scheduler import Scheduler
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.models.opening import Base
from pitcli.engine.models.roles import POLICY, RoleModel, is_gap
from pitcli.errors import SettingsError
from pitcli.processes.ranks import world_size
from pitcli.runs.earlier import EarlierRun, gap_loss_of, gap_temperatures
from pitcli.settings.base import GapBound
from pitcli.settings.generating import ImproveConfig


def refuse_unusable_endpoints(config: ImproveConfig) -> None:
    """Raise SettingsError if an address or the key cannot be one, or if there are several processes."""
    if config.writer:
        _endpoint(config)
        if world_size() > 1:
            raise SettingsError("--writer: expected one process; start it without torchrun, and raise --concurrency")
    check_addresses(_gap_endpoint(config).base_urls, "--gap-url")


@contextmanager
def open_scheduler(
    config: ImproveConfig, base: Base | None, models: Models, budgets: Mapping[int, int] | None
) -> Iterator[Scheduler]:
    """Yield the scheduler, with the models of this process loaded and the endpoints of the others connected.

    base: None if no model runs or encodes here.
    """
    with ExitStack() as opened:
        gap_here = models.gap_run is not None and config.gap_url is None
        model: RoleModel | None = None
        gap_model: GapModel | EndpointGapModel | None = None
        if base and models.gap_run and not gap_here:
            vocabulary = AutoConfig.from_pretrained(base.folder, trust_remote_code=False).get_text_config().vocab_size
            at_server = open_endpoint_gap(_gap_endpoint(config), base.chat, models.gap_run, vocabulary)
            gap_model = opened.enter_context(at_server)
        if base and (gap_here or not config.writer):
            adapters = {role: path for role, path in models.adapters().items() if gap_here or not is_gap(role)}
            model = base.load(adapters)
            for role in adapters:
                if not is_gap(role):
                    model.keep_merged(role)
            model.pack_weights()
            gap_model = _gap_model(config, base, models.gap_run, model) if gap_here and models.gap_run else gap_model
        if config.writer:
            options = base.identity.template_options if base else config.template_options()
            endpoint, limit = _endpoint(config), config.max_new_tokens
            writer = EndpointWriter(endpoint, config.temperature, config.top_p, limit, options)
            batching = opened.enter_context(EndpointBatching(writer))
            yield Scheduler(writer, gap_model, config, budgets, batching)
            return
        assert base is not None and model is not None
        decoding = Decoding(config.temperature, config.top_p, config.max_new_tokens, base.chat.stop_ids, 1)
        policy = POLICY if models.writer and models.writer.manifest.role == POLICY else None
        yield Scheduler(LocalWriter(model, base.chat, decoding, policy), gap_model, config, budgets)


def load_gap_model(base: Base, run: EarlierRun, micro_batch_size: int, bound: GapBound) -> GapModel:
    """Return the gap model or models of a run, by themselves: for commands that score and generate nothing."""
    temperatures, loss = gap_temperatures(run.manifest), gap_loss_of(run.manifest)
    model = base.load(run.gap_models())
    if len(temperatures) == 1 and base.dtype is torch.float32 and not base.identity.load_in_4bit:
        model.merge(*temperatures)
    model.pack_weights(writes=False)
    return GapModel(model, base.chat, temperatures, micro_batch_size, loss, bound)


def _gap_model(config: ImproveConfig, base: Base, run: EarlierRun, model: RoleModel) -> GapModel:
    temperatures, loss = gap_temperatures(run.manifest), gap_loss_of(run.manifest)
    # a writer at an endpoint may count other tokens than the gap model; without an edit a text may be longer
    longest = base.max_length if config.writer or config.prune_edits else None
    return GapModel(model, base.chat, temperatures, config.sample_batch_size, loss, config.gap_bound, longest)


def _endpoint(config: ImproveConfig) -> Endpoint:
    return endpoint_of(config, _kept(config))


def _gap_endpoint(config: ImproveConfig) -> Endpoint:
    urls = tuple(url.rstrip("/").removesuffix("/v1") for url in config.gap_urls())
    seconds, kept = config.request_timeout, _kept(config)
    return Endpoint("--gap-url", "", urls, config.concurrency, seconds, kept, NOT_FOUND)


def _kept(config: ImproveConfig) -> str:
    """What a user reads about the rows when an endpoint fails."""
    return "the rows so far are written" if config.output == "-" else "the rows so far are kept; --resume continues"
