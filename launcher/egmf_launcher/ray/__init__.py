"""Ranks through Ray: a cluster over the hosts, one job on every slot."""
