"""Checks of what all hosts must see: the run's folder, the data, the backbone; and that the settings fit them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from egmf_dist.errors import EgmfError
from egmf_dist.run.folder import Run, check_run
from egmf_dist.run.status import bytes_of
from egmf_launcher.doctor.rows import Case, Row, by_fact, listed
from egmf_launcher.errors import USER_ERRORS, one_line

GIB = 2**30
ROOM, LEAST_ROOM = 5 * GIB, 2**27


def hostfile(case: Case) -> Iterator[Row]:
    """This machine is one of the hostfile's, once."""
    if not case.named:
        return
    from egmf_launcher.ray.cluster import split_hosts

    slots = sum(host.slots for host in case.hosts)
    try:
        split_hosts(case.hosts)
    except EgmfError as error:
        yield Row("hostfile", "", "bad", str(error), "train starts on one of the hostfile's machines")
        return
    yield Row("hostfile", "", "ok", f"{len(case.hosts)} hosts, {slots} slots; this one is {case.here}")


def working_folder(case: Case) -> Iterable[Row]:
    """Workers change to the folder that the training was started in."""

    def judge(host: str, said: Any) -> Row:
        if said:
            return Row("folder", host, "ok", os.getcwd())
        return Row("folder", host, "bad", f"no {os.getcwd()}", "mount it there under the same path, or start elsewhere")

    return by_fact(case, "folder", "folder", judge)


def run_folder(case: Case) -> Iterable[Row]:
    """There is room where the run is or will be, every host writes there, and reads what this one wrote."""
    needed = max((bytes_of(path) for path in Run(case.run).saved_checkpoints().values()), default=0)

    def judge(host: str, said: Any) -> Iterator[Row]:
        place = said["place"]
        share = "mount one folder on every host under this path, or choose one with --run"
        if not said["there"]:
            yield Row("run folder", host, "bad", f"no {place}", share)
            return
        if said["write_error"] is not None:
            yield Row("run folder", host, "bad", f"{place} cannot be written: {said['write_error']}", "see its mount")
        elif said["free"] < max(LEAST_ROOM, needed):
            yield Row("run folder", host, "bad", f"{_gib(said['free'])} free in {place}", "make room")
        elif said["free"] < max(ROOM, 3 * needed):
            yield Row("run folder", host, "warning", f"{_gib(said['free'])} free in {place}", "make room")
        else:
            yield Row("run folder", host, "ok", f"{place} can be written, {_gib(said['free'])} free")
        if host == case.here:
            return
        if token_of(case) is None:
            yield Row("run folder", host, "skipped", f"{case.here} could not write a file for it to read")
        elif said["read"] != token_of(case):
            why = said.get("read_error") or "it holds something else"
            found = f"another {place} than {case.here}'s: its file is not there ({why})"
            yield Row("run folder", host, "bad", found, share)
        else:
            yield Row("run folder", host, "ok", f"reads what {case.here} wrote there")

    return by_fact(case, "run folder", "run", judge)


def token_of(case: Case) -> str | None:
    """What the file held that was written here; None where it was not."""
    found = case.facts[case.here].said.get("run") or {}
    return found.get("read")


def data(case: Case) -> Iterable[Row]:
    """Every host reads the same shards: index and manifest by their hash, the tars by number and bytes."""
    if case.config is None:
        yield Row("data", "", "skipped", "no settings were given", "add --config FILE, as for train")
        return
    remote = [path for path in case.config.data.shards if "://" in path]
    if remote:
        yield Row("data", "", "skipped", f"{listed(remote)}: behind a URL; its index is read with the settings below")
    here = case.facts[case.here].said.get("data", {})

    def judge(host: str, said: Any) -> Iterator[Row]:
        for place, found in said.items():
            known = here.get(place, {})
            if "error" in found:
                mend = "mount it there under the same path" if host != case.here else "say where with --data.shards"
                yield Row("data", host, "bad", found["error"], mend)
            elif "error" not in known and known and found != known:
                what = "index or manifest" if found["sha256"] != known["sha256"] else "number or size of the shards"
                yield Row("data", host, "bad", f"{place}: another {what} than on {case.here}", "copy it again, whole")
            else:
                yield Row("data", host, "ok", f"{place}: {found['shards']} shards, {_gib(found['bytes'])}")

    yield from by_fact(case, "data", "data", judge)


def backbone(case: Case) -> Iterable[Row]:
    """Every host reads the same backbone: its configuration by hash, its files by size."""
    if case.config is None:
        yield Row("backbone", "", "skipped", "no settings were given", "add --config FILE, as for train")
        return
    here = case.facts[case.here].said.get("backbone")
    if here is None:
        found = f"{case.config.backbone.path or 'none'} is no folder here"
        yield Row("backbone", "", "skipped", found, "a hub id must be in every host's cache, or each host fetches it")
        return

    def judge(host: str, said: Any) -> Row:
        path = case.config.backbone.path if case.config is not None else ""
        mend = "mount it there under the same path, or copy it again, whole"
        if said is None or not said["there"]:
            return Row("backbone", host, "bad", f"no {path}", mend)
        if said["unreadable"]:
            return Row("backbone", host, "bad", f"{path}: cannot read {listed(said['unreadable'])}", "see its rights")
        if said["config"] is None:
            return Row("backbone", host, "bad", f"{path} holds no config.json", "give a folder in Hugging Face format")
        names = {*said["sizes"], *here["sizes"]}
        other = sorted(name for name in names if said["sizes"].get(name) != here["sizes"].get(name))
        if other or said["config"] != here["config"]:
            return Row("backbone", host, "bad", f"{path}: other {listed(other or ['config.json'])} than here", mend)
        return Row("backbone", host, "ok", f"{path}: {len(said['sizes'])} files, {_gib(sum(said['sizes'].values()))}")

    yield from by_fact(case, "backbone", "backbone", judge)


def settings(case: Case) -> Iterator[Row]:
    """Settings, data, backbone and what the run has fit together: what ``train`` checks before it starts ranks."""
    if case.config is None:
        yield Row("settings", "", "skipped", "no settings were given", "add --config FILE, as for train")
        return
    from egmf_dist.preflight import preflight
    from egmf_dist.run.places import found_again
    from egmf_launcher.train import check_paths

    run, ranks = Run(case.run), sum(host.slots for host in case.hosts)
    try:
        config = found_again(case.config, run)
        check_paths(config)
        check_run(config, run, "auto")
        said = preflight(config, ranks, run, "auto")
    except USER_ERRORS as error:
        yield Row("settings", "", "bad", one_line(error), "train would say the same")
        return
    yield Row("settings", "", "warning" if said else "ok", said or f"they fit data and backbone, on {ranks} ranks")


def _gib(count: float) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.1f} MiB"
