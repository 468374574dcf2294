"""What all parts share, against hypothesis and a real ZooKeeper."""
