#!/usr/bin/env python
"""Train EGMF: ``deepspeed launcher/train.py --hostfile hosts``, ``python launcher/train.py``, ``torchrun ...
launcher/train.py``.

The same code as ``egmf train``: parse, decide, dispatch (:mod:`egmf_launcher.train`). Without a configuration and
without data the demo's are prepared first. ``--help`` shows every setting.
"""

import sys

if __name__ == "__main__":
    try:
        from egmf_launcher.cli import main
    except ModuleNotFoundError as error:
        sys.exit(f"launcher/train.py: error: {error}; install the package with: {sys.executable} -m pip install -e .")
    sys.exit(main(["train", *sys.argv[1:]], program="launcher/train.py"))
