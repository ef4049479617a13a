"""infra/compose.yaml without containers: its services as processes of this machine, and nights that go through them."""
