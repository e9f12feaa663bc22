"""``--include`` and ``--exclude`` as DeepSpeed's users know them."""

from __future__ import annotations

import pytest
from deepspeed.launcher.runner import parse_resource_filter

from egmf_dist.errors import EgmfError
from egmf_launcher.hostfile import Host
from egmf_launcher.selection import select

HOSTS = (Host("worker-0", 4), Host("worker-1", 2), Host("u@10.0.0.3", 1))


@pytest.mark.parametrize(
    ("include", "exclude"),
    [
        ("worker-1", None),
        ("worker-1:1@worker-0:0,2", None),
        ("worker-0:3@worker-0:1", None),
        (None, "worker-0"),
        (None, "worker-1:0@worker-0:1,3"),
        (None, "worker-0@worker-1"),
    ],
)
def test_what_deepspeed_chooses(include: str | None, exclude: str | None) -> None:
    hosts = HOSTS[:3] if exclude == "worker-0@worker-1" else HOSTS[:2]
    chosen = select(hosts, include, exclude)
    pool = {host.name: list(range(host.slots)) for host in hosts}
    theirs = parse_resource_filter(pool, include or "", exclude or "")
    ours = {host.name: sorted(host.chosen or range(host.slots)) for host in chosen}
    assert ours == {name: sorted(slots) for name, slots in theirs.items()}
    assert [host.slots for host in chosen] == [len(slots) for slots in ours.values()]
    assert select(hosts, None, None) == list(hosts)


@pytest.mark.parametrize(
    ("include", "exclude", "says"),
    [
        ("worker-9", None, "--include worker-9: 'worker-9' is no machine of the hostfile"),
        ("worker-1:2", None, "--include worker-1:2: worker-1 has no slot '2', but 0 to 1"),
        ("worker-1:", None, "--include worker-1:: worker-1 has no slot ''"),
        (None, "worker-1:x", "worker-1 has no slot 'x'"),
        ("", None, "'' is no machine of the hostfile"),
        (None, "worker-0@worker-1", "no slot of the hostfile is left"),
        ("worker-0", "worker-1", "--include and --exclude exclude each other"),
    ],
)
def test_what_is_refused(include: str | None, exclude: str | None, says: str) -> None:
    with pytest.raises(EgmfError) as caught:
        select(HOSTS[:2], include, exclude)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
