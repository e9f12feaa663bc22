"""Checkpoints that training does not wait for: copied between two steps, written by a thread, published together.

Each rank's thread writes and hashes a file of its own; no collective runs in it. Ranks say in the all-reduce that every
step begins with whether theirs is done (:func:`egmf_dist.training.supervision.next_step`), and when all are, they
publish the checkpoint at the same place of the same step.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file

from egmf_dist import distributed
from egmf_dist.engine import Engine
from egmf_dist.errors import EgmfError
from egmf_dist.files import replace_folder, sync_file, sync_folder, unfinished, write_json, writing
from egmf_dist.formats import sealed
from egmf_dist.run.checkpoints import RECORD, Progress
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import Identity
from egmf_dist.run.lock import check_held
from egmf_dist.training.checkpoint import point_to, prune
from egmf_dist.training.pieces import Buffers, copy_pieces, file_name, state_of
from egmf_shards.checksums import sha256
from egmf_shards.messages import unbroken


class Saved(NamedTuple):
    """What became of a checkpoint; the same on every rank."""

    step: int
    error: str | None
    """Why it could not be written; the one before it stays in force."""
    stall_s: float
    """Rank 0's training waited so long for it, the publishing included."""
    write_s: float
    """The slowest rank wrote and hashed so long."""
    mib: float


class Part(NamedTuple):
    """What one rank has written."""

    sha256: str
    size: int
    seconds: float


class Saver:
    """Writes a training's checkpoints, one at a time; every rank has one.

    Args:
        engine: DeepSpeed's.
        run: the run, whose folder all ranks share.
        identity: what a resume must agree with.
        standardisations: by what statistics features are standardised, JSON-able.
        keep: how many checkpoints stay.
        launch: this launch's token.
        began: the step it goes on from: checkpoints of later ones are given up with the first that is published.
    """

    def __init__(
        self,
        engine: Engine,
        run: Run,
        identity: Identity,
        standardisations: Mapping[str, Any],
        keep: int,
        launch: str | None = None,
        began: int | None = None,
    ) -> None:
        self._began, self._own = began, set[int]()
        self.engine, self.run, self.keep, self.launch = engine, run, keep, launch
        self._newest: Progress | None = None
        self._said = {"identity": identity.to_json(), "standardisations": dict(standardisations)}
        self._buffers: Buffers = {}
        self._begun: _Begun | None = None

    @property
    def busy(self) -> bool:
        """A checkpoint is begun and not published yet; the same on every rank."""
        return self._begun is not None

    @property
    def written(self) -> bool:
        """This rank has nothing more to do for it than to publish it."""
        return self._begun is not None and not self._begun.thread.is_alive()

    def holds(self, progress: Progress) -> bool:
        """The newest checkpoint is of exactly this; the same on every rank."""
        return self._newest == progress

    def begin(self, progress: Progress) -> None:
        """Copy what belongs into a checkpoint, and have it written; every rank must call this.

        Args:
            progress: where the run stands.

        Raises:
            EgmfError: another launch has taken the run over.
        """
        assert self._begun is None, "publish the one before it first"
        since = time.perf_counter()
        temporary = unfinished(self.run.checkpoint(progress.step))

        def prepare() -> str | None:
            try:
                check_held(self.run, self.launch)  # before anything is cleared: it may be the holder's
            except OSError as error:
                return str(error)
            try:
                with writing(temporary, self._name(progress.step)):
                    shutil.rmtree(temporary, ignore_errors=True)
                    temporary.mkdir(parents=True)
                    sync_folder(self.run.folder)  # the names in it: this folder's own, and that of the records
            except (EgmfError, OSError) as error:
                return str(error)
            return None

        error: str | None = distributed.on_rank_zero(prepare)
        state = state_of(self.engine)
        if error is None:
            self._buffers = copy_pieces(self.engine, state, self._buffers)
        record = self._said | {"progress": asdict(progress), "state": state._asdict()}
        self._begun = _Begun(temporary, record, self._buffers, error)
        self._begun.stall_s = time.perf_counter() - since
        self._newest = replace(progress)

    def publish(self) -> Saved:
        """Wait for every rank's part and make the checkpoint the one to go on from; every rank must call this.

        Raises:
            EgmfError: another launch has taken the run over.
        """
        assert self._begun is not None
        since, begun, self._begun = time.perf_counter(), self._begun, None
        begun.wait()
        parts = distributed.gather_objects(begun.part)
        step = int(begun.record["progress"]["step"])

        def publish() -> Saved:
            assert parts is not None
            whole = [part for part in parts if isinstance(part, Part)]
            error = next((part for part in parts if isinstance(part, str)), None)
            if error is None:
                error = self._publish(step, begun, whole)
            else:
                shutil.rmtree(begun.folder, ignore_errors=True)
            stall_s = begun.stall_s + time.perf_counter() - since
            write_s = max((part.seconds for part in whole), default=0.0)
            return Saved(step, error, stall_s, write_s, sum(part.size for part in whole) / 2**20)

        saved: Saved = distributed.on_rank_zero(publish)
        if saved.error is not None:
            self._newest = None
        return saved

    def _publish(self, step: int, begun: _Begun, parts: list[Part]) -> str | None:
        try:
            check_held(self.run, self.launch)
        except OSError as error:  # nobody is known to have taken it over; the next checkpoint may go well
            shutil.rmtree(begun.folder, ignore_errors=True)
            return str(error)
        hashes = {file_name(rank): part.sha256 for rank, part in enumerate(parts)}
        try:
            with writing(begun.folder, self._name(step)):
                write_json(begun.folder / RECORD, sealed(begun.record | {"sha256": hashes}))
                replace_folder(begun.folder, self.run.checkpoint(step))
                point_to(self.run, step, self.launch)
        except (EgmfError, OSError) as error:
            return str(error)
        self._own.add(step)
        # Damaged ones that were passed over are among them.
        began = step if self._began is None else self._began
        given_up = {s for s in self.run.saved_checkpoints() if s > began} - self._own
        with contextlib.suppress(OSError):  # what cannot be removed now is next time
            prune(self.run, step, self.keep, given_up)
        return None

    def _name(self, step: int) -> str:
        return f"checkpoint {self.run.checkpoint(step)}"

    def close(self) -> None:
        """Give up what is not published; no collective, because other ranks may be gone."""
        if self._begun is None:
            return
        self._begun.wait()
        if distributed.rank() == 0:
            shutil.rmtree(self._begun.folder, ignore_errors=True)
        self._begun = None


class _Begun:
    """A checkpoint that is being written.

    Args:
        folder: where it is made.
        record: what it will say of itself.
        pieces: this rank's; nobody changes them meanwhile.
        error: why it cannot be; then nothing is written.
    """

    def __init__(self, folder: Path, record: dict[str, Any], pieces: Buffers, error: str | None) -> None:
        self.folder, self.record, self.error = folder, record, error
        self.stall_s = 0.0
        self.part: Part | str = error or ""
        self.thread = threading.Thread(target=self._write, args=(pieces,), name="checkpoint", daemon=True)
        if error is None:
            self.thread.start()

    def wait(self) -> None:
        """Until this rank's part is on the disk, or is known not to come there."""
        if self.error is None:
            self.thread.join()

    def _write(self, pieces: Buffers) -> None:
        since, path = time.perf_counter(), self.folder / file_name(distributed.rank())
        name = f"checkpoint step {self.record['progress']['step']}"
        try:
            with writing(self.folder, name, clears=False):
                save_file(pieces, path)
                sync_file(path)
            self.part = Part(sha256(path), path.stat().st_size, time.perf_counter() - since)
        except Exception as error:  # whatever it is, the checkpoint is not there, and training goes on
            self.part = unbroken(str(error)) or repr(error)
