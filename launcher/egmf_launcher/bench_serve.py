"""``egmf bench serve``: a server under load, in figures."""

from __future__ import annotations

from pathlib import Path

from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json


def bench_serve(model: Path, /, out: Path, seconds: float = 60.0, clients: int = 8) -> int:
    """Good, huge, broken and slow requests at once against a server of its own, and a stop while it answers.

    Args:
        model: folder that egmf export wrote, or a run's
        out: folder for summary.json
        seconds: of load
        clients: at once

    Returns:
        0, or 1 where something was answered as it should not be.
    """
    from egmf_dist.bench.serving import bench

    if not 1 <= clients <= 64 or not 1 <= seconds <= 3600:
        raise EgmfError(f"bench serve: clients is {clients} and seconds {seconds:g}; 1 to 64, and 1 to 3600")
    out.mkdir(parents=True, exist_ok=True)
    found = bench(model, seconds, clients)
    write_json(out / "summary.json", found)
    for name in ("idle", "loaded"):
        own = found[name]
        print(f"{name}: {own['good_answered']} good ones, p50 {own['p50_seconds']} s, p99 {own['p99_seconds']} s")
        print(f"  {own['statuses']}")
    before, after = (found["memory_bytes"][key] / 2**20 for key in ("before", "after"))
    print(
        f"p99 is {found['p99_by_idle']} times that of one client alone; memory {before:.0f} MiB, then {after:.0f} MiB"
    )
    print(f"stopped while it answered: {found['stop']['statuses']}, exit code {found['stop']['exit_code']}")
    wrong = [*found["loaded"]["wrong"], *(f"at the stop: {s}" for s in found["stop"]["statuses"] if s != 200)]
    for line in wrong[:10]:
        print(f"wrong: {line}")
    print(f"summary: {out / 'summary.json'}")
    return 1 if wrong or found["stop"]["exit_code"] else 0
