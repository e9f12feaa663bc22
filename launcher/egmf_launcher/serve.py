"""``egmf serve``: one process with its own port; with ``--ray`` replicas under Ray Serve."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from egmf_dist.errors import EgmfError
from egmf_dist.serve.settings import DEFAULT, Serving

TOKEN = "EGMF_SERVE_TOKEN"
"""The environment's variable: a command line can be read by everybody on the machine."""
EXTRA = "pip install 'egmf-dist[serve,media]'"


def serve(
    model: Path,
    /,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    serving: Serving = DEFAULT,
    ray: bool = False,
    replicas: int = 1,
    hostfile: Path | None = None,
) -> None:
    """Answer over HTTP, with a page, until SIGTERM or Ctrl-C; what is running then is answered first.

    Args:
        model: folder that egmf export wrote, or a run's
        host: address to listen at; others than this machine's own need a token, or a network that you trust
        port: to listen at; 0: a free one, which is printed
        token: whoever asks must show it as Authorization Bearer; null: what EGMF_SERVE_TOKEN says, where it is set
        serving: bounds.
        ray: under Ray Serve, a replica of the model for each slot; needs ray[serve]
        replicas: on this machine, with --ray
        hostfile: machines and their slots, 'name slots=N' a line, with --ray, in place of --replicas

    Raises:
        EgmfError: the model cannot be loaded, the port is taken, or something is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise EgmfError(f"egmf serve: {error.name} is not installed: {EXTRA}") from error
    serving.check()
    token = token if token is not None else os.environ.get(TOKEN)
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise EgmfError(f"--token, or {TOKEN}: letters, digits and signs of ASCII without spaces are needed")
    if replicas < 1:
        raise EgmfError(f"--replicas is {replicas}; it must be 1 or more")
    if (replicas > 1 or hostfile is not None) and not ray:
        raise EgmfError("--replicas and --hostfile: need --ray")
    if ray:
        from egmf_launcher.hostfile import Host, parse_hostfile
        from egmf_launcher.ray.serving import serve_under_ray

        hosts = [Host("localhost", replicas)] if hostfile is None else parse_hostfile(hostfile)
        return serve_under_ray(model, (host, port), token, serving, hosts)
    from egmf_dist.serve.app import build_app
    from egmf_dist.serve.server import bind, ended_in_order, hosts_of, is_loopback, run
    from egmf_dist.serve.service import Service

    with ended_in_order(), bind(host, port) as listening:
        service = Service.open(model, serving)
        try:
            app = build_app(service, token, hosts_of(host, serving.names))
            if token is None and not is_loopback(host):
                print(f"warning: whoever reaches {host} may ask; --token, or {TOKEN}, guards it", file=sys.stderr)
            if service.why_no_clips:
                print(f"warning: clips are not taken: {service.why_no_clips}", file=sys.stderr, flush=True)
            print(service.model, flush=True)
            address, number = listening.getsockname()[:2]
            shown = f"[{address}]" if ":" in address else address
            print(f"serving: http://{shown}:{number}", flush=True)
            run(app, service, listening)
        finally:
            service.close()
    return None
