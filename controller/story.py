"""A finished plan as a story: who asked, who was fenced and how that is known, who was chosen, what was lost, what took
how long. Pure: from the record alone, so that anybody can tell it years later."""

from controller.model import HistoryRecord, Kind, Proof

PROOFS = {
    Proof.NONE_NEEDED.value: "there was no primary before: nothing had to be fenced",
    Proof.WATCHDOG.value: "its own watchdog closed the database and said so",
    Proof.PROCESS_DEAD.value: "its watchdog saw the server process dead, and lets it start only closed",
    Proof.LEASE_ENDED.value: "it was silent until its lease had certainly ended, and whoever could have let it go on had sealed",
    Proof.OPERATOR.value: "nothing could prove it; an operator said that nothing of it ran any more",
}


def story(record: HistoryRecord) -> list[str]:
    """Return the story, a sentence or a line of the timeline each."""
    return [
        f"{record.kind.value} {record.id}: {_change(record)}, epoch {record.epoch}, in {record.total_ms:.0f} ms",
        f"outcome: {record.outcome}",
        f"began {record.started}, ended {record.ended}",
        f"asked for by: {_who(record)}",
        f"why: {record.why}",
        *_fence(record),
        *([f"what failed on the way: {record.trouble}"] if record.trouble else []),
        *(["ranking, the best first:"] if record.ranking else []),
        *(f"  {one}" for one in record.ranking),
        f"lost: {lost(record)}",
        *([f"accepted before: {record.accepts.text}"] if record.accepts else []),
        "timeline, from the moment the fault or the request was seen:",
        *(f"  {step.ms:8.0f} ms  {step.name} (took {step.took_ms:.0f} ms){f': {step.detail}' if step.detail else ''}"
          for step in record.steps),
    ]  # fmt: skip


def lost(record: HistoryRecord) -> str:
    """Return what was lost, and why that is known."""
    if record.loss is not None and record.new != record.old:
        return record.loss.text
    if record.outcome.startswith("rolled back") or record.new == record.old:
        return "nothing: the old primary went on"
    if record.kind is Kind.BOOTSTRAP:
        return "nothing: it is the first epoch"
    if record.kind is Kind.SWITCHOVER:
        return "nothing: the old primary was closed first, and the new one was opened only with all that it had"
    return "not judged: nothing is promoted unless everything acknowledged is there, or a loss was accepted"


def _change(record: HistoryRecord) -> str:
    return f"{record.old} -> {record.new}" if record.old is not None else f"{record.new} is the first primary"


def _who(record: HistoryRecord) -> str:
    if record.automatic:
        return "nobody, it happened by itself"
    named = f", who named {record.requested}" if record.requested else ""
    taken = any(step.name == "loss accepted" for step in record.steps)
    return f"an operator{named}{'; it had begun before, and waited for proof' if taken else ''}"


def _fence(record: HistoryRecord) -> list[str]:
    if record.proof is None:
        return ["proof of fence: none was needed, nothing was promoted"]
    return [f"proof of fence: {record.proof} ({PROOFS.get(record.proof, 'see docs/architecture.md')})"]
