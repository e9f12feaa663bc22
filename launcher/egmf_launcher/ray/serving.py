"""``egmf serve --ray``: the same application in replicas, behind Ray Serve's proxy, for as long as the driver lives."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from egmf_dist.errors import EgmfError
from egmf_dist.serve.settings import UPLOADS_A_PLACE, Serving
from egmf_launcher.errors import WorkerFailedError, one_line
from egmf_launcher.hostfile import Host
from egmf_launcher.ray import cluster

OF_THE_EXTRA = ("aiohttp_cors", "grpc", "prometheus_client", "watchfiles")
"""Modules that come with ray[serve] and not with ray."""


def serve_under_ray(
    model: Path, where: tuple[str, int], token: str | None, serving: Serving, hosts: Sequence[Host]
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        model: folder that egmf export wrote, or a run's; every host sees it under this path.
        where: address and port of the proxy, on this machine.
        token: see :func:`egmf_dist.serve.app.build_app`.
        serving: bounds of each replica.
        hosts: of the hostfile: a replica for each slot.

    Raises:
        EgmfError: Ray Serve is not installed.
        WorkerFailedError: no replica came up; names Ray's logs.
    """
    # Ray itself must not be imported before its cluster is made: it reads its token then.
    lacking = next((name for name in OF_THE_EXTRA if importlib.util.find_spec(name) is None), None)
    if lacking is not None:
        raise EgmfError(
            f"--ray: Ray Serve is not installed ({lacking} is missing): pip install 'ray[serve]>=2.60,<2.61'"
        )
    with cluster.start(hosts) as started:
        import ray
        from ray import serve
        from ray.serve.config import HTTPOptions

        try:
            serve.start(http_options=HTTPOptions(host=where[0], port=where[1]))
            app = deployment(model, token, serving, where[0], sum(host.slots for host in hosts))
            serve.run(app, name="egmf", route_prefix="/")
        except (RuntimeError, ray.exceptions.RayError) as error:
            raise WorkerFailedError(
                f"Ray Serve: no replica came up: {one_line(error)}; logs: {started.logs}"
            ) from error
        stop = threading.Event()
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, lambda number, frame: stop.set())
        print(f"serving: http://{where[0]}:{where[1]}", flush=True)
        stop.wait()
        print("stopping: replicas answer what is running", flush=True)
        # The proxy first learns that the application goes and its replicas finish; `shutdown` alone ends the proxy,
        # and with it every connection whose answer is still being made.
        serve.delete("egmf")
        serve.shutdown()
    print("stopped", flush=True)


def deployment(model: Path, token: str | None, serving: Serving, host: str, replicas: int) -> Any:
    """The application as Ray Serve takes it: a model in each replica."""
    from ray import serve

    class Replica:
        """Makes the service where it runs: a model is not sent."""

        def __init__(self, folder: str) -> None:
            from egmf_dist.serve.service import Service

            os.chdir(folder)
            self.service = Service.open(model, serving)

        def __serve_build_asgi_app__(self) -> Any:  # Ray's name
            from egmf_dist.serve.app import build_app
            from egmf_dist.serve.server import hosts_of

            return build_app(self.service, token, hosts_of(host, serving.names))

    # The application's own bounds answer 429, so the proxy lets through what they count.
    most = (1 + UPLOADS_A_PLACE) * serving.max_queue + 16
    made: Any = serve.deployment(
        serve.ingress()(Replica),
        name="egmf",
        num_replicas=replicas,
        max_ongoing_requests=most,
        graceful_shutdown_timeout_s=serving.stop_seconds,
        ray_actor_options={"num_cpus": 1, "resources": {cluster.SLOT: 1}},
    )
    return made.bind(os.getcwd())
