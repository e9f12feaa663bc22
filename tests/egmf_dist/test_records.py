"""What a resumed run keeps of its records."""

from __future__ import annotations

import json
from pathlib import Path

from egmf_dist.config import Config, LoggingConfig
from egmf_dist.run.checkpoints import Progress
from egmf_dist.run.folder import Run
from egmf_dist.run.records import Records, read_records


def test_a_validation_that_is_done_again_stands_once(tmp_path: Path) -> None:
    """The checkpoint of step 4 was made in place of the rest of its validation, and the run was killed in the next."""
    run = Run(tmp_path)
    lines = [{"kind": kind, "step": step} for step in (2, 4) for kind in ("train", "valid")]
    config = Config(logging=LoggingConfig(to=[]))
    for validated, left in ((4, 4), (2, 3)):
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"kind": "train", "step": 5}]))
        Records(run, config, True, False, Progress(step=4, validated=validated)).close()
        assert read_records(run.metrics) == lines[:left]
