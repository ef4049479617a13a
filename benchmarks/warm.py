"""What a command imports when it comes to it, imported beforehand by a process that forks for each: most of a round."""

import gc
import importlib
import pkgutil

import vabal

# Prefect, MLflow, torch and Ray bring these in as they are used, or as the process ends.
LATE = (
    *("anyio._backends._asyncio", "matplotlib.backends.backend_agg", "mlflow.pyfunc", "prefect.engine"),
    *("mlflow.store.model_registry.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_workspace_store"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.tracking.sqlalchemy_workspace_store"),
    *("alembic.command", "sqlalchemy.dialects.sqlite", "mlflow.tracking.request_header.registry"),
    *("prefect.flow_engine", "prefect.utilities.visualization", "pyarrow.dataset", "ray.dag", "scipy.fftpack"),
    *("timm", "torch", "torch._inductor.ir", "torch.export._trace", "torchvision"),
)


def import_all() -> None:
    """That, and all of our own modules but programs and what starts Ray.

    A child that looked for garbage among it would copy all of it: it is kept out of that, as it is while it comes in.
    """
    gc.disable()
    ours = [module.name for module in pkgutil.walk_packages(vabal.__path__, "vabal.")]
    for name in (*LATE, *(name for name in ours if not name.endswith(("__main__", "on_ray")))):
        importlib.import_module(name)
    importlib.import_module("vabal.adapters.storage").client()  # botocore's descriptions of services
    gc.enable()
    gc.freeze()
