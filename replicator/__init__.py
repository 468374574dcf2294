"""Pull the primary's binlog, archive it durably, acknowledge it, serve it on."""
