"""Self-supervised learning of a backbone on images without labels: their random views, the training, its checkpoint."""
