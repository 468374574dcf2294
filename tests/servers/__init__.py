"""Real servers for tests, each in its own directory on free loopback ports."""
