"""What a request brings.

Owns: how a body is read. Does not know: what its fields mean.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from chatterbox.serve.errors import ApiError


async def json_of(request: Request) -> Any:
    """The body of JSON. Raises ApiError: it is none."""
    try:
        return json.loads(await request.body())
    except ValueError:
        raise ApiError("the body is no JSON; send an object with input and voice", code="invalid_json") from None
