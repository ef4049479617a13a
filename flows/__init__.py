"""Entry points of this repository: its deployments and the demo. What they run is `vabal.flows`."""
