"""The frames of a copy: cut at every byte, and whatever is not one is refused before it is believed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from cluster.errors import MalformedStream
from healthcheck import seed_framing as framing
from healthcheck.seed_framing import HEADER, Framer, Kind, Need, Trailer

ENDED = Trailer(exit_status=0, bytes=3, sha256="0" * 64, said="")
WHOLE = framing.start(10) + framing.frame(Kind.DATA, b"abc") + framing.frame(Kind.ALIVE) + framing.trailer(ENDED)


def frames_of(*pieces: bytes) -> list[tuple[Kind, bytes]]:
    framer, found = Framer(), []
    for piece in pieces:
        framer.feed(piece)
        while (one := framer.next_frame()) is not Need.DATA:
            found.append((one.kind, one.payload))
    return found


@pytest.mark.parametrize("cut", range(len(WHOLE)))
def test_a_stream_cut_anywhere_gives_the_same_frames(cut: int) -> None:
    found = frames_of(WHOLE[:cut], WHOLE[cut:])

    assert [kind for kind, _ in found] == [Kind.START, Kind.DATA, Kind.ALIVE, Kind.TRAILER]
    assert framing.read_start(found[0][1]) == 10
    assert framing.read_trailer(found[3][1]) == ENDED


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_stream_that_ends_early_has_no_trailer(length: int) -> None:
    assert Kind.TRAILER not in [kind for kind, _ in frames_of(WHOLE[:length])]


@pytest.mark.parametrize(
    ("kind", "length"),
    [(b"D", framing.PAYLOAD_BYTES_MAX + 1), (b"T", framing.CONTROL_BYTES_MAX + 1), (b"S", 2**32 - 1), (b"x", 1)],
)
def test_a_length_or_a_kind_is_checked_before_it_is_believed(kind: bytes, length: int) -> None:
    framer = Framer()
    framer.feed(HEADER.pack(kind, length))
    with pytest.raises(MalformedStream):
        framer.next_frame()


@given(some.lists(some.binary(max_size=64), max_size=8))
def test_garbage_is_frames_or_an_error_and_never_anything_else(pieces: list[bytes]) -> None:
    try:
        for kind, payload in frames_of(*pieces):
            if kind is Kind.TRAILER:
                framing.read_trailer(payload)
            elif kind is Kind.START:
                framing.read_start(payload)
    except MalformedStream:
        pass


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {},
        {"exit_status": "0", "bytes": 1, "sha256": "0" * 64, "said": ""},
        {"exit_status": 0, "bytes": -1, "sha256": "0" * 64, "said": ""},
        {"exit_status": 0, "bytes": True, "sha256": "0" * 64, "said": ""},
        {"exit_status": 0, "bytes": 1, "sha256": "0", "said": ""},
        {"exit_status": 0, "bytes": 1, "sha256": "0" * 64},
    ],
)
def test_a_trailer_that_lacks_anything_is_no_trailer(fields: object) -> None:
    with pytest.raises(MalformedStream):
        framing.read_trailer(json.dumps(fields).encode())


def test_last_words_of_any_length_fit_into_a_trailer() -> None:
    ended = Trailer(exit_status=1, bytes=0, sha256="0" * 64, said="ß" * 100_000)
    ((kind, payload),) = frames_of(framing.trailer(ended))

    assert kind is Kind.TRAILER
    assert ended.said.startswith(framing.read_trailer(payload).said)
