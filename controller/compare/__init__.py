"""`oscar-ha verify`: whether all nodes hold the same data, proven table by table at one position."""
