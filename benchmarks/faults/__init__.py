"""Faults on purpose: every command killed, starved of disk, cut off from its servers; what it promises is checked."""
