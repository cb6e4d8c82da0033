"""An artefact that a device runs, behind the contracts of this machine's: a station, a runner."""

from pathlib import PurePosixPath
from types import TracebackType

import numpy as np

from vitdeploy.profiling.stations import Loaded, Peaks, Slot, Warmth
from vitdeploy.profiling.subjects import Source
from vitdeploy.remote.session import RemoteSession
from vitdeploy.runner import Feeds, Outputs


class RemoteStation:
    """Has an artefact loaded, run and timed on the device, a call at a time."""

    def __init__(
        self, session: RemoteSession, source: Source, path: str, threads: int | None = None
    ) -> None:
        """Name the artefact; nothing is loaded yet.

        Args:
            session: connected.
            source: the artefact, as it lies here.
            path: where its file was copied, in the job's folder there: `FOLDER/FILE`.
            threads: as many as the engine likes where None.
        """
        self._session, self._source, self._path = session, source, path
        self._threads = threads
        self._name = str(PurePosixPath(path).parent)
        self.loaded: Loaded | None = None

    def open(self) -> Loaded:
        """Load the engine there.

        Raises:
            UnsupportedError: it is not installed there.
            ExportError: it refuses the artefact.
        """
        answer = self._session.ask(
            "open",
            name=self._name,
            target="onnx" if self._source.engine == "onnxruntime" else "openvino",
            path=self._path,
            threads=self._threads,
            settings=dict(self._source.settings),
        ).values
        self.loaded = Loaded(**answer)
        return self.loaded

    def warm_up(self, batch: int) -> Warmth:
        """Run there until the time stops falling."""
        feeds = _contiguous(self._source.feeds_at(batch))
        answer = self._session.ask("warm_up", name=self._name, batch=batch, arrays=feeds)
        return Warmth(**answer.values)

    def slot(self, batch: int, seconds: float) -> Slot:
        """Run there for about `seconds`, once at least."""
        answer = self._session.ask("slot", name=self._name, batch=batch, seconds=seconds).values
        return Slot(np.asarray(answer["latencies_ms"]), answer["seconds"])

    def peaks(self) -> Peaks:
        """Return the memory there since it was loaded."""
        return Peaks(**self._session.ask("peaks").values)

    def helper_seconds(self) -> float:
        """Return 0: nothing of it takes this machine's time."""
        return 0.0

    def close(self) -> None:
        """Leave it loaded; the session's end frees it."""

    def energy_key(self, batch: int) -> tuple[str, int]:
        """Return how the request `energy` names this artefact at a batch size."""
        return self._name, batch

    def runner(self) -> "RemoteRunner":
        """Return a runner of the artefact that is loaded."""
        assert self.loaded is not None
        return RemoteRunner(self._session, self._name, self.loaded)


class RemoteRunner:
    """Sends feeds to the device and returns what its engine makes of them."""

    def __init__(self, session: RemoteSession, name: str, loaded: Loaded) -> None:
        self._session, self._name = session, name
        self.engine = loaded.engine
        self.threads = loaded.threads or 1

    def __call__(self, feeds: Feeds) -> Outputs:
        """Return the outputs by name.

        Raises:
            DataError: the feeds do not fit, or the connection broke.
        """
        return self._session.ask("run", name=self._name, arrays=_contiguous(feeds)).arrays

    def __enter__(self) -> "RemoteRunner":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave it loaded: it is timed next."""


def _contiguous(feeds: Feeds) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(value) for name, value in feeds.items()}
