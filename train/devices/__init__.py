"""Devices and processes: placement, exchange, signals."""
