"""How long roles wait for each other."""

from __future__ import annotations

from typing import Any

import ray

# A long poll returns empty-handed after this long, so that nobody waits for ever for an actor that is gone.
POLL_SECONDS = 20.0
REPLY_SECONDS = 60.0  # how long a role waits for another's answer before it gives up
PROFILE_SECONDS = 600.0  # and for a profile, which lasts as long as its steps
PAYLOAD_SECONDS = 1800.0  # and for weights, which may have to cross a network


def fetch(ref: Any, timeout: float = REPLY_SECONDS) -> Any:
    """What another role answered, waited for at most `timeout` seconds."""
    return ray.get(ref, timeout=timeout)
