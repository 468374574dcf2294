"""Where the model starts: a healthy cluster, and how much may happen to it."""

from dataclasses import replace

from cluster.records import Durability, DurabilityRecord, EpochRecord, Isolation, Role
from healthcheck.judge import Memory
from tests.model.state import NODES, Lease, Node, Replicator, World, lineage_entry


def healthy(
    *,
    replicators: int = 2,
    writes: int = 1,
    faults: int = 1,
    switchovers: int = 0,
    failovers: int = 0,
    outages: int = 0,
    losses: int = 0,
) -> World:
    """Return db-clinic as the primary of epoch 1, acknowledged by toronto; nothing is written yet."""
    first = lineage_entry(1, 1, "")
    record = EpochRecord(epoch=1, primary=NODES[0], server_id=1, file="binlog.000001", position="", since="", proof="",
                         lineage=(first,))  # fmt: skip
    durability = DurabilityRecord(epoch=1, mode=Durability.SYNC, ackers=("toronto",), since="", serial=1)
    primary = Node(
        role=Role.PRIMARY,
        open=True,
        durability=durability,
        memory=Memory(generation="1", opened_epoch=1, promoted_epoch=1),
    )
    return World(
        nodes=(primary, Node(), Node()),
        replicators=tuple(Replicator(durability=durability) for _ in range(replicators)),
        epochs=(record,), durability=durability, writes=writes, faults=faults, switchovers=switchovers,
        failovers=failovers, outages=outages, losses=losses, thorough=True,
    )  # fmt: skip


def alone(*, faults: int = 1, writes: int = 1, failovers: int = 0) -> World:
    """Return db-clinic as a primary that nobody acknowledges: both replicators are down, and may be started again."""
    begun = healthy(writes=writes, faults=faults, failovers=failovers)
    gone = tuple(replace(one, up=False, lease=Lease.ENDED, epoch=0, durability=None) for one in begun.replicators)
    return replace(begun, replicators=gone, available=True)


def holding(
    *, writes: int = 1, faults: int = 1, failovers: int = 0, switchovers: int = 0, losses: int = 0, wanted: bool = True
) -> World:
    """Return db-clinic as a primary that holds while it is cut off; unless it is `wanted` the settings say promote by now."""
    return held(
        healthy(writes=writes, faults=faults, failovers=failovers, switchovers=switchovers, losses=losses),
        wanted=wanted,
    )


def held(begun: World, *, wanted: bool = True) -> World:
    """Return a world in which the record says that the primary holds while it is cut off, and it knows that."""
    record = replace(begun.newest, on_isolation=Isolation.HOLD)
    primary = replace(begun.nodes[0], isolation=Isolation.HOLD)
    return replace(begun, epochs=(record,), nodes=(primary, *begun.nodes[1:]), holds=wanted, available=True)


def second_epoch(*, writes: int = 0, faults: int = 2) -> World:
    """Return db-toronto as the primary of epoch 2, acknowledged by montreal, which lacks the end of epoch 1 still."""
    first, second = lineage_entry(1, 1, ""), lineage_entry(2, 2, "0-1-1")
    begun = healthy(writes=writes, faults=faults)
    record = EpochRecord(epoch=2, primary=NODES[1], server_id=2, file="binlog.000001", position="0-1-1", since="", proof="",
                         lineage=(first, second))  # fmt: skip
    durability = DurabilityRecord(
        epoch=2, mode=Durability.SYNC, ackers=("montreal",), since="", floor="0-1-1", serial=2
    )
    opened = Memory(generation="1", sealed_epoch=1, opened_epoch=2, promoted_epoch=2)
    return replace(
        begun, thorough=False, epochs=(*begun.epochs, record), durability=durability, acked=(11,),
        nodes=(
            Node(log=(11,), role=Role.FENCED, up=False, watched=False, lease=Lease.ENDED),
            Node(log=(11,), role=Role.PRIMARY, open=True, memory=opened, epoch=2, commanded=2, durability=durability),
            Node(epoch=2, commanded=2),
        ),
        replicators=(
            Replicator(log=(11,), sealed=1, epoch=2, durability=durability),
            Replicator(sealed=1, epoch=2, durability=durability),
        ),
    )  # fmt: skip
