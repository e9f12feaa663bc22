"""That all hosts of a training see one run folder, the same data and the same backbone under the same paths."""

from __future__ import annotations

import contextlib
import platform
import secrets
from collections.abc import Iterator
from typing import Any

from egmf_dist import distributed
from egmf_dist.config import Config
from egmf_dist.errors import EgmfError
from egmf_dist.model.identity import backbone_identity
from egmf_dist.run.folder import SHARED_PREFIX, Run
from egmf_shards import ShardSet
from egmf_shards.checksums import sha256

_UNWRITTEN = "not written"


def check_shared(run: Run, config: Config, shards: ShardSet) -> dict[str, Any]:
    """Refuse hosts that see other things under the same paths; every rank must call this.

    Returns:
        What names the backbone.

    Raises:
        EgmfError: on every rank, names the first host with another run's folder, other data or another backbone than
            rank 0's, and the path.
    """
    with distributed.failing_together():
        backbone = backbone_identity(config.backbone)
    # Written by whoever started the run: its content, so that an empty folder of that name is none.
    settings = sha256(run.config) if run.config.is_file() else "no config.yaml is there"
    with _shared_file(run) as name:
        own = {
            f"the run's folder {run.folder.absolute()}": (settings, _seen(run, name)),
            f"the data in {', '.join(config.data.shards)}": shards.index_hash,
            f"the backbone {config.backbone.path}": str(sorted(backbone.items())),
        }
        everywhere = distributed.share_objects([(platform.node(), own)])
    first_host, first = everywhere[0]
    for number, (host, seen) in enumerate(everywhere):
        for what, content in first.items():
            if seen.get(what) != content:
                raise EgmfError(
                    f"{what} is not the same on every host: rank {number} on {host} sees other content than rank 0 on "
                    f"{first_host}; share it between the hosts, or copy it to each (the run's folder must be shared)"
                )
    return backbone


@contextlib.contextmanager
def _shared_file(run: Run) -> Iterator[str]:
    """The name of a file that rank 0 has made in the run's folder, for all ranks to look for: copies of a folder have
    the same content, and are not shared. On a full disk there is none."""

    def make() -> str:
        name = f"{SHARED_PREFIX}{secrets.token_hex(8)}"
        try:
            (run.folder / name).touch()  # its name is its content
        except OSError:
            return ""
        return name

    name: str = distributed.on_rank_zero(make)
    try:
        yield name
    finally:
        if name and distributed.rank() == 0:
            with contextlib.suppress(OSError):
                (run.folder / name).unlink(missing_ok=True)


def _seen(run: Run, name: str) -> str:
    return _UNWRITTEN if not name else name if (run.folder / name).is_file() else "another folder"
