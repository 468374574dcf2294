"""Logs are events with fields, one JSON object a line on standard error, written once and at the edge."""

import logging
import sys

import structlog

# A library's own chatter is not an event of ours; its warnings are.
_QUIET = ("kazoo", "aiohttp.access", "asyncio")


class Repeated:
    """What goes wrong again and again is said when it begins or changes, and not while it goes on."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def is_news(self, what: str, text: str) -> bool:
        """Return whether `text` is not what was said of `what` last."""
        before, self._said[what] = self._said.get(what), text
        return before != text

    def is_over(self, what: str) -> None:
        """Note that it went well: should it fail again, that is news."""
        self._said.pop(what, None)


def set_up(process: str) -> None:
    """Send all logs of this process to standard error as JSON lines that carry `process`."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    structlog.contextvars.bind_contextvars(process=process)
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format='{"library": "%(name)s", "event": "%(message)s"}'
    )
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
