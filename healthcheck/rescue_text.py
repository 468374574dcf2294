"""What a person reads in the folder of a rescue."""

from healthcheck.rescue_folder import LINES, MARKS, RAW, RECORD, Rescue

TABLES_SHOWN_MAX = 50


def readme_of(rescue: Rescue) -> str:
    """Return README.txt."""
    counts, tables = rescue.counts, sorted(rescue.counts.tables.items(), key=lambda one: (-one[1], one[0]))
    shown = [f"  {rows:>10,}  {table}" for table, rows in tables[:TABLES_SHOWN_MAX]]
    more = [f"  ... and {len(tables) - TABLES_SHOWN_MAX} more tables"] if len(tables) > TABLES_SHOWN_MAX else []
    state = (
        [f"INCOMPLETE: {rescue.why}", "Keep the node's data until somebody has looked at it.", ""] if rescue.why else []
    )
    return "\n".join([
        f"Rescued from node {rescue.node} of cluster {rescue.cluster}, {rescue.made}",
        "",
        *state,
        f"This node had {counts.transactions:,} transactions that the cluster has not: it wrote them as the primary, and",
        "nobody acknowledged them before another node took over. No client was told that they are saved, but",
        "somebody may have seen them on a screen. They are patients' charts: treat these files so.",
        "",
        f"  cluster and node agree up to  {rescue.parts or 'the beginning'}",
        f"  from                          {rescue.first}",
        f"  to                            {rescue.last}",
        f"  rows                          {counts.rows:,}",
        f"  statements                    {counts.statements:,}",
        f"  not to be told or applied     {counts.not_told:,}",
        "",
        "Rows by table:",
        *(shown or ["  none"]),
        *more,
        "",
        "What to do:",
        f"  oscar-ha rescue show {rescue.id}",
        f"  oscar-ha rescue replay {rescue.id} --to PRIMARY --dry-run",
        f"  oscar-ha rescue replay {rescue.id} --to PRIMARY --yes     # nothing is overwritten; conflicts are reported",
        "",
        "Files:",
        f"  {LINES}   one line of JSON for each row, before and after; bytes are {{\"base64\": ...}}",
        f"  {RAW}*              the very events of the binary log: mariadb-binlog --verbose FILE",
        f"  {RECORD}         what this is, with the SHA-256 of each file",
        f"  {MARKS}      what 'replay' has done; not there before",
        "",
    ])  # fmt: skip
