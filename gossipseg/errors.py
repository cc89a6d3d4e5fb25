"""The error tree: every error says whose fault it was and what to do next.

GossipsegError
├── ConfigError        the operator's files: peers.yaml, site.yaml, flags, environment     exit 78
├── DataError          the site's images, labels and data list                             exit 65
├── LocalError         this machine: disk, port, key file, device                          exit 1
│   ├── DiskFull                                                                           exit 74
│   ├── AlreadyRunning another daemon holds the state directory                            exit 75
│   └── DaemonUnreachable  nobody answers on the control socket                            exit 69
└── PeerError          another site; never stops the daemon
    ├── PeerUnreachable    no connection, or no answer in time
    ├── PeerUntrusted      the key it showed is not the one listed for it
    └── PeerRefused        it answered, and said no
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_DATA = 65
EXIT_UNREACHABLE = 69
EXIT_IO = 74
EXIT_TEMPFAIL = 75
EXIT_CONFIG = 78


class GossipsegError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = EXIT_FAILED


class _Located(GossipsegError):
    """An error about one value in one file.

    The text is one paragraph: ``FILE: KEY = VALUE: what is wrong. Remedy.``
    """

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        key: str | None = None,
        value: object = None,
        remedy: str = "",
    ) -> None:
        self.problem, self.file, self.key, self.value, self.remedy = problem, file, key, value, remedy
        where = ""
        if file is not None:
            where += f"{file}: "
        if key is not None:
            where += f"{key}"
            if value is not None:
                where += f" = {value!r}"
            where += ": "
        text = f"{where}{problem.rstrip('.')}."
        super().__init__(f"{text} {remedy}".strip())


class ConfigError(_Located):
    """The operator's configuration is wrong."""

    exit_code = EXIT_CONFIG


class DataError(_Located):
    """The site's images, labels or data list are wrong."""

    exit_code = EXIT_DATA


class DataMissing(DataError):
    """No data where they should be: the path is wrong, or the data are away for now."""


class LocalError(GossipsegError):
    """Something on this machine failed: disk, port, key file, device."""


class DiskFull(LocalError):
    """A write did not fit; what was there before is still valid."""

    exit_code = EXIT_IO


class AlreadyRunning(LocalError):
    """Another process holds the lock on the state directory."""

    exit_code = EXIT_TEMPFAIL


class DaemonUnreachable(LocalError):
    """Nobody answers on the control socket."""

    exit_code = EXIT_UNREACHABLE


class PeerError(GossipsegError):
    """Another site is at fault. ``peer`` is its name, ``reason`` a stable lower_case code."""

    def __init__(self, peer: str, reason: str, detail: str = "") -> None:
        self.peer, self.reason, self.detail = peer, reason, detail
        super().__init__(f"{peer}: {reason}" + (f": {detail}" if detail else ""))


class PeerUnreachable(PeerError):
    """No connection, or no answer within the deadline."""


class PeerUntrusted(PeerError):
    """The key it showed is not listed for that site."""


class PeerRefused(PeerError):
    """The site answered and refused (a reason code from the wire)."""
