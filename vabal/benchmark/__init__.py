"""Simulated active learning over sources, imbalances, strategies and seeds, and what it says."""
