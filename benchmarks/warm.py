"""What a command imports when it comes to it, imported beforehand by a process that forks for each: most of a round."""

import importlib
import pkgutil

import vabal

# Prefect, MLflow and torch bring these in as they are used.
LATE = (
    *("anyio._backends._asyncio", "matplotlib.backends.backend_agg", "mlflow.pyfunc", "prefect.engine"),
    *("prefect.flow_engine", "prefect.utilities.visualization", "torch", "torchvision"),
)


def import_all() -> None:
    """That, and all of our own modules but programs and what starts Ray."""
    ours = [module.name for module in pkgutil.walk_packages(vabal.__path__, "vabal.")]
    for name in (*LATE, *(name for name in ours if not name.endswith(("__main__", "on_ray")))):
        importlib.import_module(name)
