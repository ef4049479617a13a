"""Settings: the models of `params.yaml`, how it is read and written, and its page in the docs."""
