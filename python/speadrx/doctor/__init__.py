"""Why does nothing arrive, or not everything? Checks of the system, and the commands that fix what is wrong.

A check is a function that takes a `Case` and yields findings. It only looks, and changes nothing. A check that is not
possible here gives a finding of severity ``"unknown"``. `listen` finds out whether packets come, so that the checks
know more:

    case = Case(endpoints=(("239.1.2.3", 7148),))
    case = dataclasses.replace(case, heard=listen(case, 2.0))
    findings = diagnose(case)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import firewall, host, ibverbs, losses, paths
from .case import Case, Heard
from .finding import Finding, Severity
from .listen import listen
from .system import Unknown

__all__ = ["Case", "Finding", "Heard", "Severity", "diagnose", "listen"]

Check = Callable[[Case], Iterator[Finding]]

#: Checks that explain why nothing comes to the interface.
_WIRE: tuple[Check, ...] = (paths.interface, paths.multicast_route, paths.mtu, paths.membership)
#: Checks that explain why nothing gets from the interface to the socket.
_KERNEL: tuple[Check, ...] = (paths.rp_filter, firewall.firewall)
#: Checks that explain why some packets are lost.
_HOST: tuple[Check, ...] = (
    losses.port,
    host.socket_buffer,
    losses.drops,
    host.backlog,
    host.affinity,
    host.numa,
    host.governor,
    host.memory,
    host.huge_pages,
    host.software,
    ibverbs.ibverbs,
)

_SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "unknown", "ok")


def diagnose(case: Case) -> list[Finding]:
    """Make all checks.

    Parameters
    ----------
    case
        What is to be received, and how.

    Returns
    -------
    list of Finding
        Problems first, then warnings, then what is not known, then what is fine. Each of these groups begins with how
        far packets get, and goes on with what most likely explains it.
    """
    found = [finding for check in (losses.arrival, *_order(case)) for finding in _make(check, case)]
    return sorted(found, key=lambda finding: _SEVERITIES.index(finding.severity))


def _make(check: Check, case: Case) -> Iterator[Finding]:
    try:
        yield from check(case)
    except (Unknown, OSError, ValueError, LookupError) as exc:
        # ValueError and LookupError mean that this kernel, or a program of this system, uses another format.
        summary = str(exc) if isinstance(exc, (Unknown, OSError)) else f"{type(exc).__name__}: {exc}"
        yield Finding(check.__name__, "unknown", summary, (check.__doc__ or "").partition("\n")[0])


def _order(case: Case) -> tuple[Check, ...]:
    """Order the checks: first those that most likely explain how far packets get."""
    heard = case.heard
    if heard is None or not case.endpoints:
        return _WIRE + _KERNEL + _HOST
    names = [str(endpoint) for endpoint in case.resolved]
    if all(heard.arrives(name) for name in names):
        return _KERNEL + _HOST + _WIRE
    if any(heard.interfaces(name) and not heard.arrives(name) and name not in heard.elsewhere for name in names):
        return _KERNEL + _WIRE + _HOST
    return _WIRE + _KERNEL + _HOST
