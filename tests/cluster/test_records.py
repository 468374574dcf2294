"""Records of ZooKeeper and HTTP: what is written is read back, what does not fit is named."""

import json
import typing
from dataclasses import MISSING, asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import records
from cluster.errors import BadInput
from cluster.records import (
    RECORD_BYTES_MAX,
    Durability,
    DurabilityRecord,
    EpochRecord,
    LineageEntry,
    NodeReport,
    ReplicatorReport,
)

KINDS = (EpochRecord, DurabilityRecord, NodeReport, ReplicatorReport, LineageEntry)
lags = st.none() | st.floats(allow_nan=False, allow_infinity=False)


def an_epoch() -> EpochRecord:
    entry = LineageEntry(epoch=1, server_id=1, file="binlog.000001", position="")
    return EpochRecord(
        epoch=1, primary="clinic-db", server_id=1, file="binlog.000001", position="0-1-100",
        since="2026-01-01T00:00:00.000Z", proof="first start", lineage=(entry,),
    )  # fmt: skip


@given(st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_every_record_is_read_back_as_it_was_written(kind: type[object], data: st.DataObject) -> None:
    record = data.draw(st.builds(kind, **({"lag_ms": lags} if kind is NodeReport else {})))

    assert records.decode(kind, records.encode(record), where="here") == record
    assert records.decode(kind, asdict(typing.cast("typing.Any", record)), where="here") == record


def test_fields_of_a_newer_version_are_ignored() -> None:
    written = json.loads(records.encode(an_epoch())) | {"from_the_future": [1, 2]}

    assert records.decode(EpochRecord, json.dumps(written), where="here") == an_epoch()


@pytest.mark.parametrize("name", [field.name for field in fields(EpochRecord) if field.default is MISSING])
def test_a_missing_field_is_named(name: str) -> None:
    written = json.loads(records.encode(an_epoch()))
    del written[name]

    with pytest.raises(BadInput, match=rf"^ZooKeeper /x is not a EpochRecord: {name}: Field required"):
        records.decode(EpochRecord, json.dumps(written), where="ZooKeeper /x")


def test_every_bad_field_is_named_at_once_with_its_value() -> None:
    written = json.loads(records.encode(an_epoch())) | {"epoch": "soon", "primary": None}

    with pytest.raises(BadInput) as caught:
        records.decode(EpochRecord, json.dumps(written), where="here")
    assert "epoch: Input should be a valid integer" in caught.value.message
    assert "'soon'" in caught.value.message
    assert "primary: Input should be a valid string" in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "7", '"text"', "\x00", "{}" * 2])
def test_what_is_no_record_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput, match="here is not a DurabilityRecord"):
        records.decode(DurabilityRecord, text, where="here")


@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_bad_input(data: bytes) -> None:
    with pytest.raises(BadInput):
        records.decode(DurabilityRecord, data, where="here")


def test_an_unknown_word_is_refused() -> None:
    written = '{"epoch": 1, "mode": "mostly", "ackers": [], "since": ""}'

    with pytest.raises(BadInput, match="mode: Input should be 'sync' or 'degraded'"):
        records.decode(DurabilityRecord, written, where="here")


def test_unknown_stays_unknown_and_is_not_empty() -> None:
    """Null means that nobody knows; empty text is a known, empty position."""
    report = ReplicatorReport(
        site="toronto", epoch=0, sealed_epoch=0, connected=False, acknowledging=False, received=None, durable="",
        acknowledged=None, orphans=0, server_version=None, why="not started", host="127.0.0.1", port=1, url="http://x",
    )  # fmt: skip

    assert records.decode(ReplicatorReport, records.encode(report), where="here").received is None
    assert records.decode(ReplicatorReport, records.encode(report), where="here").durable == ""


def test_a_record_that_zookeeper_would_refuse_is_said_before() -> None:
    record = DurabilityRecord(epoch=1, mode=Durability.SYNC, ackers=("x" * RECORD_BYTES_MAX,), since="")

    with pytest.raises(BadInput, match="is over"):
        records.encode(record)


def test_a_long_value_is_cut_in_a_message() -> None:
    with pytest.raises(BadInput) as caught:
        records.decode(DurabilityRecord, json.dumps({"epoch": "y" * 5_000}), where="here")
    assert len(caught.value.message) < 1_000
