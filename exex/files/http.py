"""Files of web servers: GET and PUT. Runs in task processes."""

from __future__ import annotations

import base64
import http.client
import netrc
import os
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from urllib.parse import unquote, urlsplit

from exex.errors import TransferError
from exex.files.file import File
from exex.files.staging import Staging

_BLOCK_BYTES = 1 << 20
_MAY_PASS = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Answers of servers that may be others next time."""

_PARTIAL = 206


class Http(Staging):
    """Fetches `http:` and `https:` URLs; sends by PUT, to servers that take that.

    Proxies are those of the environment (`https_proxy`, `no_proxy`). A name and a password in the URL, or in ~/.netrc, are given
    as Basic authentication. What broke off goes on where it broke off, if the server can do that.

    Args:
        headers: for each request, such as {"Authorization": "Bearer ..."}; not passed on to where a server redirects to.
    """

    schemes = ("http", "https")

    def __init__(
        self, headers: Mapping[str, str] | None = None, *, tries: int = 3, pause_s: float = 1.0, timeout_s: float = 60.0
    ) -> None:
        super().__init__(tries=tries, pause_s=pause_s, timeout_s=timeout_s)
        self._headers = dict(headers or {})
        self._versions: dict[str, str] = {}  # of what was begun, by path

    def fetch(self, file: File, path: str) -> None:
        """GET the file, or the rest of it."""
        request = self._request(file)
        at = os.path.getsize(path) if path in self._versions and os.path.exists(path) else 0
        if at:
            request.add_header("Range", f"bytes={at}-")
            request.add_header("If-Range", self._versions[path])
        with self._answer(request) as answer:
            is_rest = answer.status == _PARTIAL
            if is_rest and not answer.headers.get("Content-Range", "").startswith(f"bytes {at}-"):
                self._versions.pop(path)
                gave = answer.headers.get("Content-Range")
                raise OSError(f"the server gave {gave!r}, where what follows byte {at} was asked for")
            self._note_version(path, answer.headers)
            length = answer.headers.get("Content-Length")
            with open(path, "ab" if is_rest else "wb") as out:
                begin = out.tell() if is_rest else 0
                shutil.copyfileobj(answer, out, _BLOCK_BYTES)
                came = out.tell() - begin
        if length is not None and came != int(length):
            raise OSError(f"the connection broke after {begin + came:,} of {begin + int(length):,} bytes")
        self._versions.pop(path, None)

    def send(self, path: str, file: File) -> None:
        """PUT the file."""
        with open(path, "rb") as body:
            request = self._request(file, body)
            request.add_header("Content-Length", str(os.fstat(body.fileno()).st_size))
            request.add_header("Content-Type", "application/octet-stream")
            with self._answer(request):
                pass

    def _request(self, file: File, body: object = None) -> urllib.request.Request:
        parts = urlsplit(file.url)
        user, password, netloc = parts.username, parts.password, parts.netloc.rpartition("@")[2]
        url = parts._replace(netloc=netloc, fragment="").geturl()
        request = urllib.request.Request(url, data=body, method="GET" if body is None else "PUT")  # type: ignore[arg-type]
        request.add_header("Accept-Encoding", "identity")
        request.add_header("User-Agent", "exex")
        if user is None:
            user, password = _from_netrc(parts.hostname or "")
        if user is not None:
            secret = base64.b64encode(f"{unquote(user)}:{unquote(password or '')}".encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {secret}")
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)
        return request

    def _note_version(self, path: str, headers: Message) -> None:
        """Remember by what the server can tell whether the rest belongs to what has come; without it there is no going on."""
        tag = headers.get("ETag", "")
        version = headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
        if version and headers.get("Accept-Ranges", "bytes") != "none":
            self._versions[path] = version
        else:
            self._versions.pop(path, None)

    @contextmanager
    def _answer(self, request: urllib.request.Request) -> Iterator[http.client.HTTPResponse]:
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            error.close()
            text = f"the server says {error.code} {error.reason}"
            if error.code in _MAY_PASS:
                raise OSError(text) from error
            raise TransferError(text) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise TransferError(f"the server's certificate is not accepted: {error.reason}") from error
            raise OSError(f"the server cannot be reached: {error.reason}") from error
        except http.client.InvalidURL as error:
            raise TransferError(str(error)) from error
        except http.client.HTTPException as error:
            raise OSError(f"the connection broke ({type(error).__name__}: {error})") from error


def _from_netrc(host: str) -> tuple[str | None, str | None]:
    try:
        found = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None, None
    return (found[0], found[2]) if found else (None, None)
