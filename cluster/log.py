"""Logs are events with fields, one JSON object a line on standard error, written once and at the edge."""

import logging
import sys

import structlog

# A library's own chatter is not an event of ours; its warnings are.
_QUIET = ("kazoo", "aiohttp.access", "asyncio")


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
