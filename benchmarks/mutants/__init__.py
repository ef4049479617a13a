"""Mutation testing: small faults are put into the code one by one, and the tests have to notice them.

`make mutants`; what the figures mean and which faults may stay unnoticed: docs/decisions/mutants.md.
"""
