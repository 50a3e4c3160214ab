"""A headless Chromium that is told what to do through its DevTools protocol: no package for that is needed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

SECONDS = 200
CHROMIUM = shutil.which("chromium")


class Page:
    """A page of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._calls = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": params})
        while True:
            answer = await self._socket.receive_json()
            if answer.get("id") == self._calls:  # else an event
                assert "error" not in answer, answer
                return answer["result"]

    async def text(self) -> str:
        """What a reader sees, and what the fields of tables have."""
        result = await self.call("Runtime.evaluate", expression="document.body ? document.body.innerText : ''")
        return result["result"]["value"]

    async def wait_for(self, *parts: str) -> str:
        """Until the page has all of these; its text."""
        text = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SECONDS):
                while [part for part in parts if part not in text]:
                    await asyncio.sleep(0.2)
                    text = await self.text()
        assert [part for part in parts if part not in text] == [], text
        return text

    async def screenshot(self) -> bytes:
        """PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


@contextlib.asynccontextmanager
async def open_page(profile: Path, width: int, height: int) -> AsyncIterator[Page]:
    """An empty page, in a Chromium that keeps everything in the folder `profile`."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--hide-scrollbars"]
    command += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]
    with subprocess.Popen([*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            port = await _port(profile / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
                    pages = [target for target in await reply.json() if target["type"] == "page"]
                async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Page(socket)
        finally:
            process.kill()


async def _port(file: Path) -> int:
    """Chromium takes a free one, on loopback, and writes it down."""
    async with asyncio.timeout(SECONDS):
        while not (file.exists() and (text := file.read_text())):
            await asyncio.sleep(0.05)
    return int(text.split()[0])
