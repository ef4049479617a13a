"""Speed and memory, measured on this machine: `make bench`, or `python -m benchmarks [NAME ...] [--out FILE]`.

Every module has `run() -> dict`, what it measured; `__main__` says which bounds that must keep.
"""
