"""Tests are claims; those marked `servers` run real MariaDB, ZooKeeper and HAProxy processes."""
