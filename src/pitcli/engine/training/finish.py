"""The end of a training run: publishes its adapters, reads them back, and completes its manifest."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from pitcli.engine.models.adapters import clear_role, read_role, save_role
from pitcli.engine.models.forward import probe
from pitcli.engine.models.roles import RoleModel, fingerprint
from pitcli.errors import RunError
from pitcli.processes.collectives import barrier
from pitcli.runs.folder import RunFolder


def finish(model: RoleModel, run: RunFolder, roles: Sequence[str], results: dict[str, Any]) -> None:
    """Publish the adapters of a run and complete its manifest.

    Each adapter is read back from its files; RunError if it is not bit-identical to the trained one.
    """
    probes = {}
    for role in roles:
        probes[role] = probe(model, role)
        before = fingerprint(model.role_parameters(role).values())
        run.publish(role, partial(save_role, model, role))
        barrier()
        clear_role(model, role)
        read_role(model, role, run.path / role)
        if fingerprint(model.role_parameters(role).values()) != before:
            raise RunError(f"{run.path / role}: the saved adapter differs from the trained one; check the disk")
    run.complete(results, roles, probes)
    barrier()
