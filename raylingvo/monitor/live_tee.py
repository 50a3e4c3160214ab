"""Several live views of one run."""

from __future__ import annotations

from raylingvo.monitor.live import View
from raylingvo.monitor.status import Status


class TeeView(View):
    """Shows the same in several views; one that is added later shows what comes from then on."""

    def __init__(self, *views: View) -> None:
        self._views = list(views)

    def add(self, view: View) -> None:
        self._views.append(view)

    def update(self, status: Status) -> None:
        for view in self._views:
            view.update(status)

    def event(self, text: str) -> None:
        for view in self._views:
            view.event(text)

    def close(self) -> None:
        for view in self._views:
            view.close()
