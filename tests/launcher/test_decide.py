"""Which way a start goes: the whole matrix, without starting anything."""

from __future__ import annotations

import pytest

from egmf_dist.errors import EgmfError
from egmf_launcher.decide import LaunchArguments, decide, started_rank
from egmf_launcher.hostfile import Host

TWO = (Host("localhost", 2),)
CLUSTER = (Host("a", 8), Host("b", 8))
NONE: dict[str, str] = {}
RANK0 = {"RANK": "0", "WORLD_SIZE": "2"}
RANK1 = {"RANK": "1", "WORLD_SIZE": "2"}
THERE = {"RAY_ADDRESS": "head:6379"}


@pytest.mark.parametrize(
    ("arguments", "environ", "hosts", "gpus", "way", "chosen"),
    [
        # A hostfile among our own arguments always means Ray, whoever started us and whatever the counts are.
        (LaunchArguments(hostfile="hosts"), NONE, TWO, 0, "ray", TWO),
        (LaunchArguments(hostfile="hosts"), RANK0, TWO, 0, "ray", TWO),
        (LaunchArguments(hostfile="hosts"), RANK1, TWO, 0, "leave", ()),
        (LaunchArguments(hostfile="hosts"), RANK0, CLUSTER, 4, "ray", CLUSTER),
        (
            LaunchArguments(hostfile="hosts"),
            {"RANK": "0", "WORLD_SIZE": "1"},
            (Host("localhost", 1),),
            0,
            "ray",
            (Host("localhost", 1),),
        ),
        # Ranks that somebody started, and no hostfile.
        (LaunchArguments(), RANK0, (), 0, "rank", ()),
        (LaunchArguments(), RANK1, (), 2, "rank", ()),
        # A plain start.
        (LaunchArguments(), NONE, (), 0, "single", ()),
        (LaunchArguments(), NONE, (), 1, "single", ()),
        (LaunchArguments(), NONE, (), 4, "ray", (Host("localhost", 4),)),
        (LaunchArguments(workers=2), NONE, (), 0, "ray", TWO),
        (LaunchArguments(workers=1), NONE, (), 4, "single", ()),
        (LaunchArguments(launcher="ray"), NONE, (), 0, "ray", (Host("localhost", 1),)),
        (LaunchArguments(workers=1, launcher="ray"), NONE, (), 4, "ray", (Host("localhost", 1),)),
        # A cluster that is there already.
        (LaunchArguments(workers=3), THERE, (), 0, "ray", (Host("head:6379", 3),)),
        (LaunchArguments(), THERE, (), 16, "ray", (Host("head:6379", 16),)),
        (LaunchArguments(workers=1), THERE, (), 0, "ray", (Host("head:6379", 1),)),
        (LaunchArguments(workers=2, ray_address="auto"), THERE, (), 0, "ray", (Host("auto", 2),)),
        (LaunchArguments(hostfile="hosts"), THERE, TWO, 0, "ray", TWO),
        (LaunchArguments(), RANK0 | THERE, (), 0, "rank", ()),
        (LaunchArguments(launcher="deepspeed"), THERE, (), 3, "deepspeed", (Host("localhost", 3),)),
        # Without Ray: DeepSpeed's launcher.
        (LaunchArguments(hostfile="hosts", launcher="deepspeed"), NONE, CLUSTER, 0, "deepspeed", CLUSTER),
        (LaunchArguments(hostfile="hosts", launcher="deepspeed"), RANK0, CLUSTER, 0, "deepspeed", CLUSTER),
        (LaunchArguments(hostfile="hosts", launcher="deepspeed"), RANK1, CLUSTER, 0, "leave", ()),
        (LaunchArguments(launcher="deepspeed"), NONE, (), 3, "deepspeed", (Host("localhost", 3),)),
        (LaunchArguments(launcher="deepspeed", workers=2), NONE, (), 3, "deepspeed", TWO),
    ],
)
def test_ways(
    arguments: LaunchArguments,
    environ: dict[str, str],
    hosts: tuple[Host, ...],
    gpus: int,
    way: str,
    chosen: tuple[Host, ...],
) -> None:
    decision = decide(arguments, environ, hosts, gpus)
    assert (decision.way, decision.hosts) == (way, chosen)
    assert decision.line().startswith("launch: ")
    assert "\n" not in decision.line()
    assert decision.why


def test_the_line_names_way_and_reason() -> None:
    line = decide(LaunchArguments(hostfile="hosts"), RANK0, TWO).line()
    assert line.startswith("launch: Ray over 1 host, 2 workers - --hostfile hosts names localhost slots=2; ")
    line = decide(LaunchArguments(hostfile="hosts"), NONE, CLUSTER).line()
    assert line == "launch: Ray over 2 hosts, 16 workers - --hostfile hosts names a slots=8, b slots=8"


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        (LaunchArguments(workers=0), NONE, "--workers is 0; it must be 1 or more"),
        (LaunchArguments(workers=2, hostfile="hosts"), NONE, "exclude each other"),
        (LaunchArguments(workers=2), RANK0, "started already"),
        (LaunchArguments(launcher="ray"), RANK0, "started already"),
        (LaunchArguments(launcher="deepspeed"), RANK0, "started already"),
        (LaunchArguments(ray_address="a:1", hostfile="hosts"), NONE, "--ray-address and --hostfile exclude each other"),
        (LaunchArguments(ray_address="a:1", launcher="deepspeed"), NONE, "--ray-address and --launcher deepspeed excl"),
        (LaunchArguments(ray_address="a:1"), RANK0, "--ray-address: the ranks are started already"),
        (LaunchArguments(ray_address=""), NONE, "--ray-address is empty"),
        (LaunchArguments(), THERE, "head:6379 has no GPU; say with --workers"),
        (LaunchArguments(), {"RANK": "0"}, "WORLD_SIZE is not set"),
        (LaunchArguments(), {"WORLD_SIZE": "2"}, "RANK is not set"),
        (LaunchArguments(), {"RANK": "2", "WORLD_SIZE": "2"}, "0 <= RANK < WORLD_SIZE"),
        (LaunchArguments(), {"RANK": "x", "WORLD_SIZE": "2"}, "0 <= RANK < WORLD_SIZE"),
    ],
)
def test_contradictions_are_refused(arguments: LaunchArguments, environ: dict[str, str], says: str) -> None:
    with pytest.raises(EgmfError, match=says):
        decide(arguments, environ, TWO if arguments.hostfile else ())


def test_started_rank() -> None:
    assert started_rank(NONE) is None
    assert started_rank(RANK1) == 1
