"""One rank of a real all-reduce: ``python -m egmf_launcher.doctor.all_reduce``, started here and through ssh.

As in :mod:`egmf_launcher.ray.node`, standard input is open for as long as whoever started it lives; its end ends this.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import threading
import time

from egmf_launcher.network import address_towards, interface_of

BYTES = {"gloo": 2**24, "nccl": 2**27}
"""Of the tensor: large enough for the rate to be the link's, small enough for a slow one."""
_REPEATS = 5


def main() -> int:
    """Join, sum, and on rank 0 print ``{"right": ..., "seconds": ..., "bytes": ...}`` of the median all-reduce."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("rank", "world", "port", "device", "limit"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--master", required=True, help="address of rank 0's machine")
    parser.add_argument("--backend", choices=sorted(BYTES), required=True)
    asked = parser.parse_args()
    threading.Thread(target=_leave_with_starter, daemon=True).start()
    interface = interface_of(asked.master) or interface_of(address_towards(asked.master))
    if interface is not None:
        # Without it gloo binds to what the host's name resolves to, on many systems 127.0.1.1, and meets only itself.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", asked.device) if asked.backend == "nccl" else torch.device("cpu")
    limit = datetime.timedelta(seconds=asked.limit)
    address = f"[{asked.master}]" if ":" in asked.master else asked.master
    where = {"init_method": f"tcp://{address}:{asked.port}", "rank": asked.rank, "world_size": asked.world}
    dist.init_process_group(asked.backend, timeout=limit, **where)
    numbers = torch.full((BYTES[asked.backend] // 4,), float(asked.rank + 1), device=device)
    dist.all_reduce(numbers)  # the first one makes the connections
    right = bool((numbers == asked.world * (asked.world + 1) / 2).all())
    seconds = []
    for _ in range(_REPEATS):
        dist.barrier()
        since = time.perf_counter()
        dist.all_reduce(numbers)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - since)
    if asked.rank == 0:
        size = numbers.numel() * 4
        print(json.dumps({"right": right, "seconds": statistics.median(seconds), "bytes": size}), flush=True)
    dist.destroy_process_group()
    return 0


def _leave_with_starter() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
