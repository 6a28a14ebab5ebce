"""Machines: what this host can boot, and how it is told."""
