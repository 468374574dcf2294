"""What can be said of the cluster when ZooKeeper is gone for everybody: what the last known primary answers directly."""

from cluster import records
from cluster.errors import OscarHaError
from cluster.http import Client
from cluster.records import EpochRecord, NodeReport
from cluster.settings import Settings

ASK_DEADLINE_MS = 500


async def told(settings: Settings, client: Client, epoch: EpochRecord | None) -> str | None:
    """Return in a sentence how the primary goes on, None unless it does so without ZooKeeper: we may be cut off alone."""
    if epoch is None:
        return None
    try:
        url = f"{settings.node(epoch.primary).watchdog_url}/health"
        report = records.decode(NodeReport, await client.get(url, deadline_ms=ASK_DEADLINE_MS), where=url)
    except OscarHaError:
        return None
    if not report.granted_by:
        return None
    return (f"ZooKeeper is gone; the cluster writes by the direct word of {', '.join(report.granted_by)};"
            " a failover is not possible now")  # fmt: skip
