"""TensorBoard events: scalars, one event for each record of a metrics log, and pictures."""

from __future__ import annotations

import itertools
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylingvo.monitor.atomic import naming

_files = itertools.count()
# Kinds of colors: of PNG -> their number, which is what TensorBoard calls a colorspace.
_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}


class EventsFile:
    """A new `events.out.tfevents.*` file in an existing directory.

    Every call is on disk when it returns. tensorboardX's own SummaryWriter hands events to a thread whose disk errors
    nobody sees, so this uses the writer beneath it. Raises OSError, naming the directory, when the disk refuses.
    """

    def __init__(self, directory: Path) -> None:
        # Imported here, as it takes 0.3 s and only writers need it. Protobuf makes its classes at run time, which
        # type checkers cannot follow: hence Any.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._protos: tuple[Any, Any] = event_pb2, summary_pb2
        self._directory = directory
        # The name holds the time in seconds only: without a suffix a log reopened within one would overwrite the first.
        with naming(directory):
            self._writer = EventsWriter(str(directory / "events"), f".{os.getpid()}.{next(_files)}")

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds `{"step", "time", metric: value, ...}` as scalars under the metrics' names; None is shown as NaN."""
        event_pb2, summary_pb2 = self._protos
        scalars = [
            summary_pb2.Summary.Value(tag=name, simple_value=math.nan if value is None else value)
            for name, value in record.items()
            if name not in ("step", "time")
        ]
        summary = summary_pb2.Summary(value=scalars)
        self._write(event_pb2.Event(wall_time=record["time"], step=record["step"], summary=summary))

    def write_pictures(self, step: int, time: float, pictures: Mapping[str, bytes]) -> None:
        """Adds PNG files under their names. time: Unix seconds."""
        event_pb2, summary_pb2 = self._protos
        values = []
        for name, png in pictures.items():
            width, height, _, kind = struct.unpack_from(">IIBB", png, 16)  # of the header, always the first chunk
            image = summary_pb2.Summary.Image(
                width=width, height=height, colorspace=_CHANNELS[kind], encoded_image_string=png
            )
            values.append(summary_pb2.Summary.Value(tag=name, image=image))
        self._write(event_pb2.Event(wall_time=time, step=step, summary=summary_pb2.Summary(value=values)))

    def restart(self, step: int, time: float) -> None:
        """Tells TensorBoard to forget what it has of `step` and later, in older files too."""
        event_pb2, _ = self._protos
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(wall_time=time, step=step, session_log=start))

    def close(self) -> None:
        with naming(self._directory):
            self._writer.close()

    def _write(self, event: Any) -> None:
        with naming(self._directory):
            self._writer.write_event(event)
            self._writer.flush()
