"""From settings to a page in the browser: the detector is loaded once, and one process serves all who open the page.

The page is `deepfake/web/page.py`, run by Streamlit for each visitor and each change; it finds what it shows in
`served`. Nothing that a visitor sends is written to disk, and the browser is told to ask nobody else for anything.
"""

import importlib.util
import ipaddress
import os
import socket
import sys
import webbrowser
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deepfake.config import AppConfig
from deepfake.console import log, logging_to_terminal
from deepfake.data.catalog import read_catalogue
from deepfake.errors import UserError
from deepfake.inspecting import Inspector, Trained
from deepfake.judging import Detector
from deepfake.reference import NoReference, Reference, reference_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

INTERRUPTED = 130  # exit status
_UPLOAD = "/_stcore/upload_file/"  # where Streamlit's page sends files to: then the session, then the file
_LONGEST_MESSAGE = 2**20  # bytes of a visitor's, files apart
_ROOM = 2**30  # bytes of all visitors' files together; what one visitor may send always has room
_PATIENCE = 2  # seconds that open pages are given at the end
# Of any answer. Streamlit's page needs styles of its own making, and pictures out of memory.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Served:
    """What the page shows.

    Attributes:
        name: of the run.
        inspector: shared by all visitors.
        max_files: looked at, of a visitor's.
        max_megabytes: of each.
        local: whether the page can be opened on this computer alone.
    """

    name: str
    inspector: Inspector
    max_files: int
    max_megabytes: int
    local: bool


_served: list[Served] = []


def served() -> Served:
    """For the page, which Streamlit runs in this process."""
    return _served[-1]


def serve(cfg: AppConfig) -> int:
    """See `deepfake.app.run`."""
    with logging_to_terminal():
        _expect_streamlit()
        run = Path(cfg.run).expanduser()
        with _listening(cfg.host, cfg.port) as listener:  # before the run is loaded, which takes longer
            address, port = listener.getsockname()[:2]
            of = ipaddress.ip_address(address)
            if not of.is_loopback:
                log.warning(
                    "host=%s: everyone who reaches this computer can use the page, for it has no password", cfg.host
                )
            inspector = _inspector(run, cfg)
            _served.append(Served(run.absolute().name, inspector, cfg.max_files, cfg.max_megabytes, of.is_loopback))
            url = _url(of, port)
            log.info("the page is at %s; Ctrl-C ends it", url)
            if cfg.open_browser and _has_screen():
                webbrowser.open(url)
            try:
                _serve(listener, cfg, of.is_loopback)
            except KeyboardInterrupt:
                log.info("the page is closed")
                return INTERRUPTED
            finally:
                _served.pop()
    return 0


def _expect_streamlit() -> None:
    if importlib.util.find_spec("streamlit") is None:
        raise UserError("expected the package streamlit, found none. Run: pip install 'deepfake[app]'")


def _listening(host: str, port: int) -> socket.socket:
    """Bound at once, so that no other program takes the port meanwhile.

    Raises:
        UserError: it is taken, or the host is not of this computer.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (socket.gaierror, UnicodeError) as error:  # the second where it cannot be a name at all, as ".."
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"host={host}: expected an address or a name, found none such ({reason}).") from error
    except OSError as error:
        raise UserError(
            f"host={host} port={port}: expected an address of this computer and a free port, found that it cannot "
            f"be had ({error.strerror}). Name another with port=..., or port=0 for any that is free."
        ) from error


def _url(of: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    """Where the page can be opened on this computer; 0.0.0.0 stands for all addresses and is none itself."""
    if of.is_unspecified:
        return f"http://localhost:{port}"
    return f"http://{of}:{port}" if of.version == 4 else f"http://[{of}]:{port}"


def _inspector(run: Path, cfg: AppConfig) -> Inspector:
    detector = Detector.load(run, cfg.engine, cfg.tta, cfg.device)
    reference: Reference | str
    try:
        reference = reference_of(run, detector, cfg.reference_images, cfg.engine, cfg.progress)
    except NoReference as error:
        reference = str(error)
    trained = None
    try:
        trained = Trained.of(read_catalogue(run / "manifest.parquet"))
    except UserError as error:
        log.warning("%s", error)
    inspector = Inspector(detector, cfg.threshold, cfg.max_megapixels, trained, reference)
    for untold in inspector.untold:
        log.warning("%s", untold)
    return inspector


def _has_screen() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _serve(listener: socket.socket, cfg: AppConfig, local: bool) -> None:
    import streamlit
    import uvicorn
    from starlette.formparsers import MultiPartParser
    from starlette.middleware import Middleware
    from streamlit.web.bootstrap import load_config_options

    # Else an upload of more than a megabyte would pass through a file.
    MultiPartParser.spool_max_size = (cfg.max_megabytes + 2) * 2**20
    page = Path(__file__).parent / "web" / "page.py"
    guard = Middleware(_Guard, max_files=cfg.max_files, max_bytes=cfg.max_megabytes * 2**20)
    app = streamlit.App(page, middleware=[guard])
    load_config_options(_options(cfg, listener.getsockname()[1], local))
    config = uvicorn.Config(
        app,
        lifespan="on",
        ws_max_size=_LONGEST_MESSAGE,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_PATIENCE,
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    if not server.started:
        raise RuntimeError("the server did not start; what is above says why")


def _options(cfg: AppConfig, port: int, local: bool) -> dict[str, Any]:
    """Streamlit's, which win over what its own files say."""
    return {
        "server.address": cfg.host,
        "server.port": port,
        "server.baseUrlPath": "",  # else neither our address nor `_UPLOAD` would be right
        "server.headless": True,  # nothing is proposed to whoever starts it
        "server.maxUploadSize": cfg.max_megabytes,
        "server.enableXsrfProtection": True,
        "server.enableCORS": True,  # protection, that is
        # A stranger's page whose name leads to this computer is not answered.
        "server.allowedHosts": ["127.0.0.1", "localhost", "::1", cfg.host] if local else [],
        "server.corsAllowedOrigins": [],
        "server.enableStaticServing": False,
        "server.enableAgentApi": False,
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "global.developmentMode": False,
        "runner.magicEnabled": False,
        "logger.hideWelcomeMessage": True,
    }


class _Guard:
    """Puts our headers on every answer; refuses a visitor more files than the page judges, and all more than fit.

    A visitor may send one more than is judged: by that the page knows that there were more, and says so.
    """

    def __init__(self, app: "ASGIApp", max_files: int, max_bytes: int) -> None:
        self.app, self.most, self.max_bytes = app, max_files + 1, max_bytes
        self.room = max(_ROOM, self.most * max_bytes)
        self._coming: Counter[str] = Counter()  # files that are under way, by session

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                ours = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *ours]
            await send(message)

        if scope["method"] != "PUT" or not scope["path"].startswith(_UPLOAD):
            return await self.app(scope, receive, send_with_headers)
        session = scope["path"].removeprefix(_UPLOAD).split("/")[0]
        held = _held()
        refusal = None
        if held.files[session] + self._coming[session] >= self.most:
            refusal = f"at most {self.most - 1} files at once", 413
        elif held.bytes + (self._coming.total() + 1) * self.max_bytes > self.room:
            refusal = "the images of all visitors fill the memory that is meant for them: try again later", 503
        if refusal:
            from starlette.responses import PlainTextResponse

            return await PlainTextResponse(*refusal)(scope, receive, send_with_headers)
        self._coming[session] += 1
        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            self._coming[session] -= 1
            self._coming += Counter()  # forgets sessions that nothing comes for


class _Held(NamedTuple):
    files: Counter[str]  # in memory, by session
    bytes: int  # of all


def _held() -> _Held:
    from streamlit.runtime import get_instance
    from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager

    manager = get_instance().uploaded_file_mgr
    assert isinstance(manager, MemoryUploadedFileManager)  # noqa: S101 - as `streamlit.App` makes it
    sessions = {session: list(files.values()) for session, files in list(manager.file_storage.items())}
    return _Held(
        Counter({session: len(files) for session, files in sessions.items()}),
        sum(len(file.data) for files in sessions.values() for file in files),
    )
