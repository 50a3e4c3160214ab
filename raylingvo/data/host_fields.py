"""Fields of a batch that stay on the host: texts, which a task's `postprocess` may want and no device can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# NumPy's kinds of objects, bytes, str and StringDType.
_TEXT_KINDS = {"O", "S", "U", "T"}


def device_fields(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The batch without its texts: what a step is compiled for, and called with.

    Arrays or ShapeDtypeStructs. A field is a text if its dtype is `object` (strings) or one of NumPy's for strings.
    """
    return {name: x for name, x in batch.items() if getattr(x.dtype, "kind", None) not in _TEXT_KINDS}
