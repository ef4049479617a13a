"""The classifier and what stands beside it: networks, training, features, metrics, scoring networks."""
