"""A strict stand-in for AWS on loopback, with state and time: what AWS would refuse, it refuses."""
