"""Files of Globus collections, moved by the Globus service. Runs in task processes; needs globus_sdk: `exex[globus]`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from exex.errors import ConfigError, TransferError
from exex.files.file import File
from exex.files.staging import Staging

TOKEN = "GLOBUS_TRANSFER_TOKEN"
"""The variable that may have the access token."""

_ENDED = ("SUCCEEDED", "FAILED", "INACTIVE")


class Globus(Staging):
    """Fetches and sends `globus://COLLECTION/PATH`: Globus moves the file between that collection and the one of this machine.

    The stage task asks the service and waits; it holds its slot meanwhile. If it is stopped, the transfer is cancelled.

    Args:
        collection: id of the collection on this machine.
        root: directory of this machine that is the collection's `/`.
        token: access token for Globus Transfer; None: the variable GLOBUS_TRANSFER_TOKEN, where the script runs.
        client: makes a `globus_sdk.TransferClient` in another way, such as from a UserApp with stored tokens; pickled, and called
            in the task.
        poll_s: between two questions how far it is.
        timeout_s: after which a transfer is given up.

    Raises:
        ConfigError: neither a token nor a client.
    """

    schemes = ("globus",)

    def __init__(
        self,
        collection: str,
        root: str = "/",
        *,
        token: str | None = None,
        client: Callable[[], Any] | None = None,
        poll_s: float = 5.0,
        tries: int = 3,
        pause_s: float = 1.0,
        timeout_s: float = 24 * 3600.0,
    ) -> None:
        super().__init__(tries=tries, pause_s=pause_s, timeout_s=timeout_s)
        self._collection = collection
        self._root = os.path.abspath(root)
        self._token = token or os.environ.get(TOKEN)
        self._client = client
        self._poll_s = poll_s
        if client is None and not self._token:
            raise ConfigError(f"Globus needs token= or client=, or the variable {TOKEN}: an access token for Globus Transfer")

    def fetch(self, file: File, path: str) -> None:
        """Have the file brought to `path`."""
        self._transfer(file, (file.netloc, file.remote_path()), (self._collection, self._inside(path)))

    def send(self, path: str, file: File) -> None:
        """Have the file at `path` brought to where the URL says."""
        self._transfer(file, (self._collection, self._inside(path)), (file.netloc, file.remote_path()))

    def _inside(self, path: str) -> str:
        """A path of this machine as the collection has it."""
        relative = os.path.relpath(os.path.realpath(path), os.path.realpath(self._root))
        if relative.startswith(".."):
            raise TransferError(
                f"{path} is not in {self._root}, the root of the collection {self._collection}: fetch to a directory that is"
            )
        return f"/{relative}"

    def _transfer(self, file: File, source: tuple[str, str], target: tuple[str, str]) -> None:
        sdk = _sdk()
        data = sdk.TransferData(
            source_endpoint=source[0],
            destination_endpoint=target[0],
            label="exex",
            verify_checksum=True,
            notify_on_succeeded=False,
        )
        data.add_item(source[1], target[1])
        try:
            client = self._connected(sdk)
            task_id = client.submit_transfer(data)["task_id"]
            try:
                task = self._ended(client, task_id)
            except BaseException:
                client.cancel_task(task_id)  # if it has ended meanwhile, the service only says so
                raise
            if task["status"] != "SUCCEEDED":
                raise TransferError(f"Globus task {task_id} is {task['status']}: {_said(task)}")
        except sdk.NetworkError as error:
            raise OSError(f"Globus cannot be reached: {error}") from error
        except sdk.GlobusAPIError as error:
            text = f"Globus says {error.http_status} {error.code}: {error.message}"
            if error.http_status in (429, 500, 502, 503, 504):
                raise OSError(text) from error
            raise TransferError(text) from error

    def _connected(self, sdk: Any) -> Any:
        if self._client is not None:
            return self._client()
        return sdk.TransferClient(authorizer=sdk.AccessTokenAuthorizer(self._token))

    def _ended(self, client: Any, task_id: str) -> Any:
        """What the service says of a transfer when it has ended."""
        until_s = time.monotonic() + self.timeout_s
        while (task := client.get_task(task_id))["status"] not in _ENDED:
            if time.monotonic() > until_s:
                raise TransferError(f"Globus task {task_id} is not done after {self.timeout_s:g} s: {_said(task)}")
            time.sleep(self._poll_s)
        return task


def _said(task: Any) -> str:
    """What the service says of a task."""
    fatal = task.get("fatal_error") or {}
    return str(fatal.get("description") or task.get("nice_status_short_description") or task.get("nice_status") or "nothing said")


def _sdk() -> Any:
    try:
        import globus_sdk
    except ImportError as error:
        raise TransferError(f"globus: URLs need globus_sdk on the nodes ({error}): pip install exex[globus]") from error
    return globus_sdk
