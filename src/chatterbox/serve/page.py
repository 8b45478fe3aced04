"""The web page: files of the package, and what a browser may do with them.

Owns: which files there are, their headers. Does not know: the page's own code, other routes.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from chatterbox.serve.errors import NOT_FOUND, ApiError

FOLDER = Path(__file__).parent / "web"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
HEADERS = {
    # Nothing of anywhere else; audio and downloads are of the page's own making.
    "content-security-policy": (
        "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; frame-ancestors 'none'; base-uri 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


async def page(request: Request) -> Response:
    """GET /, and /page/NAME."""
    path = FOLDER / request.path_params.get("name", "index.html")
    if path.parent != FOLDER or path.suffix not in TYPES or not path.is_file():
        raise ApiError("there is no such page", NOT_FOUND, code="not_found")
    return FileResponse(path, media_type=TYPES[path.suffix], headers=HEADERS)
