"""The report of an attack as one HTML page: verdicts, what each kind cost, and a picture of the time. Pure.

Made from the JSON document alone, so that an old one can be shown again. Nothing is loaded from anywhere; everything that
came from outside is escaped.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

WIDTH, LEFT = 1_200, 110
WRITES_HEIGHT, LAG_HEIGHT, LANE_HEIGHT, GAP = 120, 80, 16, 24
TICKS_MAX = 12
TICK_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200)
ROLE_COLOURS: Mapping[str, str] = {
    "primary": "#1a7f37", "standby": "#9ecbff", "joining": "#e3b341", "fenced": "#8250df", "failed": "#cf222e",
    "silent": "#57606a",
}  # fmt: skip
LAG_COLOURS = ("#0969da", "#bf3989", "#1a7f37")
VERDICT_COLOURS = {"kept": "#1a7f37", "broken": "#cf222e", "proved nothing": "#9a6700"}
STYLE = """body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1240px;color:#1f2328}
table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #d0d7de;padding:.25em .6em;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}svg{width:100%;height:auto;border:1px solid #d0d7de}
svg text{font:11px system-ui,sans-serif;fill:#57606a}li{margin:.15em 0}code{background:#eff1f3;padding:0 .3em}"""


def page(document: Mapping[str, Any]) -> str:
    """Return the whole page."""
    head = f"Attack with seed {document['seed']}: " + ("everything kept" if document["passed"] else "NOT PASSED")
    facts = (
        f"{document['faults']} faults in {len(document['rounds'])} rounds, {document['seconds']:.0f} s; "
        f"network: {document['network']}; commit <code>{escape(str(document.get('commit', '')))}</code>"
    )
    return "\n".join((
        "<!doctype html>", '<html lang="en"><meta charset="utf-8">', f"<title>{escape(head)}</title>",
        f"<style>{STYLE}</style>", f"<h1>{escape(head)}</h1>", f"<p>{facts}</p>",
        "<h2>Verdicts</h2>", verdict_table(document), *_list("Problems", document["problems"]),
        "<h2>The time</h2>", picture(document), legend(),
        "<h2>What each kind cost</h2>", matrix_table(document["matrix"]),
        "<h2>Round by round</h2>", rounds_table(document["rounds"]), *_list("What happened besides", document["events"]),
        "</html>",
    ))  # fmt: skip


def verdict_table(document: Mapping[str, Any]) -> str:
    """Return every claim with its verdict and why."""
    rows = [
        (f"<b style='color:{VERDICT_COLOURS.get(verdict, '#000')}'>{escape(verdict)}</b>", escape(claim),
         escape(str(document["why"].get(claim, ""))))
        for claim, verdict in document["verdicts"].items()
    ]  # fmt: skip
    return _table(("verdict", "claim", "why"), rows)


def matrix_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return what each kind cost; a dash is what was not measured."""
    rows = [
        (escape(line["kind"]), str(line["times"]), str(line["alone"]),
         *(_ms(line[what].get(key)) for what in ("outage_ms", "whole_ms") for key in ("p50", "p99", "max")))
        for line in lines
    ]  # fmt: skip
    heads = ("fault", "times", "alone", "pause p50", "p99", "max", "whole p50", "p99", "max")
    return _table(heads, rows, numbers_from=1)


def rounds_table(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return the rounds in order."""
    rows = [
        (str(one["number"]), "<br>".join(escape(_fault_text(fault)) for fault in one["faults"]), _ms(one["outage_ms"]),
         _ms(one["writing_ms"]), _ms(one["whole_ms"]), str(one["epoch"] or "-"))
        for one in rounds
    ]  # fmt: skip
    return _table(("round", "faults", "longest pause", "writing after", "whole after", "epoch"), rows)


def picture(document: Mapping[str, Any]) -> str:
    """Return writes per second, lag, roles and faults over one time, as SVG."""
    timeline = document["timeline"]
    seconds = max(1, len(timeline.get("writes", ())))
    roles: Mapping[str, Sequence[Sequence[Any]]] = timeline.get("roles", {})
    lanes_top = WRITES_HEIGHT + LAG_HEIGHT + 3 * GAP
    faults_top = lanes_top + LANE_HEIGHT * len(roles) + GAP
    height = faults_top + 2 * LANE_HEIGHT + 2 * GAP
    parts = (
        *_grid(seconds, height), *_writes(timeline.get("writes", ()), seconds),
        *_lag(timeline.get("lag_ms", {}), seconds), *_roles(roles, seconds, lanes_top),
        *_faults(document["rounds"], seconds, faults_top),
    )  # fmt: skip
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="time">\n' + "\n".join(parts) + "\n</svg>"


def legend() -> str:
    """Return what the colours of the roles mean."""
    found = (f"<span style='color:{colour}'>&#9632;</span> {role}" for role, colour in ROLE_COLOURS.items())
    return f"<p>{' &nbsp; '.join(found)} &nbsp; red: faults, from their beginning to their heal</p>"


def _grid(seconds: int, height: int) -> Iterator[str]:
    every = next((tick for tick in TICK_SECONDS if seconds / tick <= TICKS_MAX), TICK_SECONDS[-1])
    for second in range(0, seconds + 1, every):
        across = _x(second, seconds)
        yield f'<line x1="{across}" x2="{across}" y1="0" y2="{height - GAP}" stroke="#eaeef2"/>'
        yield f'<text x="{across}" y="{height - 8}" text-anchor="middle">{second // 60}:{second % 60:02}</text>'


def _writes(found: Sequence[int], seconds: int) -> Iterator[str]:
    top, most = GAP, max((*found, 1))
    yield from _axis("writes/s", top, WRITES_HEIGHT, str(most))
    points = [f"{_x(second, seconds)},{top + WRITES_HEIGHT * (1 - one / most):.1f}" for second, one in enumerate(found)]
    if points:
        floor = top + WRITES_HEIGHT
        whole = " ".join((f"{_x(0, seconds)},{floor}", *points, f"{_x(len(found) - 1, seconds)},{floor}"))
        yield f'<polygon points="{whole}" fill="#54aeff" fill-opacity=".45" stroke="#0969da"/>'


def _lag(found: Mapping[str, Sequence[Sequence[float]]], seconds: int) -> Iterator[str]:
    top = WRITES_HEIGHT + 2 * GAP
    most = max((lag for lags in found.values() for _, lag in lags), default=1.0) or 1.0
    yield from _axis("lag", top, LAG_HEIGHT, f"{most:.0f} ms")
    for colour, (node, lags) in zip(LAG_COLOURS, sorted(found.items()), strict=False):
        points = " ".join(f"{_x(second, seconds)},{top + LAG_HEIGHT * (1 - lag / most):.1f}" for second, lag in lags)
        yield f'<polyline points="{points}" fill="none" stroke="{colour}"><title>{escape(node)}</title></polyline>'


def _roles(found: Mapping[str, Sequence[Sequence[Any]]], seconds: int, top: int) -> Iterator[str]:
    for number, (node, spans) in enumerate(sorted(found.items())):
        lane = top + number * LANE_HEIGHT
        yield f'<text x="4" y="{lane + 12}">{escape(node)}</text>'
        for begin, end, role in spans:
            colour = ROLE_COLOURS.get(role, "#ffffff")
            yield _bar(begin, end, seconds, lane, colour, f"{node}: {role}, {begin:.1f} to {end:.1f} s")


def _faults(rounds: Sequence[Mapping[str, Any]], seconds: int, top: int) -> Iterator[str]:
    yield f'<text x="4" y="{top + 12}">faults</text>'
    for one in rounds:
        for number, fault in enumerate(one["faults"]):
            end = fault["healed_s"] if fault["healed_s"] is not None else fault["began_s"]
            lane = top + number * LANE_HEIGHT
            yield _bar(fault["began_s"], end, seconds, lane, "#cf222e", f"{one['number']}: {_fault_text(fault)}")


def _bar(begin: float, end: float, seconds: int, top: int, colour: str, title: str) -> str:
    left = _x(begin, seconds)
    width = max(1.0, _x(end, seconds) - left)
    return (
        f'<rect x="{left}" y="{top}" width="{width:.1f}" height="{LANE_HEIGHT - 3}" fill="{colour}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _axis(name: str, top: int, height: int, most: str) -> Iterator[str]:
    yield f'<text x="4" y="{top + 12}">{escape(name)}</text>'
    yield f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{escape(most)}</text>'
    yield f'<line x1="{LEFT}" x2="{WIDTH}" y1="{top + height}" y2="{top + height}" stroke="#d0d7de"/>'


def _x(second: float, seconds: int) -> float:
    return round(LEFT + (WIDTH - LEFT - 10) * second / seconds, 1)


def _fault_text(fault: Mapping[str, Any]) -> str:
    more = f" (did not happen: {fault['did_not']})" if fault["did_not"] else ""
    more += f" ({fault['told']})" if fault["told"] else ""
    return f"{fault['kind']}: {fault['hit']}{more}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int | None = None) -> str:
    def cell(number: int, text: str) -> str:
        is_number = numbers_from is not None and number >= numbers_from
        return f'<td class="n">{text}</td>' if is_number else f"<td>{text}</td>"

    lines = ["<table><tr>", *(f"<th>{escape(head)}</th>" for head in heads), "</tr>"]
    lines += [f"<tr>{''.join(cell(number, text) for number, text in enumerate(row))}</tr>" for row in rows]
    return "".join((*lines, "</table>"))


def _list(title: str, found: Sequence[str]) -> tuple[str, ...]:
    if not found:
        return ()
    return (f"<h2>{escape(title)}</h2>", "<ul>", *(f"<li>{escape(one)}</li>" for one in found), "</ul>")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms"
