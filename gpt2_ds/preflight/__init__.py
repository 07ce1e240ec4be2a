"""Preflight checks of the machines: before any ssh, and on every rank."""
