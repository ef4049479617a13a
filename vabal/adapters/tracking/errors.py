"""MLflow's errors about the network and the credentials, as one line with the way out."""

from collections.abc import Callable
from functools import wraps
from time import sleep
from typing import ParamSpec, TypeVar

from mlflow.exceptions import MlflowException

from vabal.errors import Unavailable

CUT_PAUSES_S = (0.2, 1.0)
NETWORK = ("API request to", "The following failures")  # how MLflow's messages begin where the network failed
CREDENTIALS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")

P = ParamSpec("P")
T = TypeVar("T")


def explained(method: Callable[P, T]) -> Callable[P, T]:
    """Turn MLflow's errors about the network and the credentials into Unavailable, with the way out.

    An answer that broke off is asked for again, which MLflow's client does not do; every method can be repeated.
    """

    @wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        for pause in CUT_PAUSES_S:
            try:
                return once(*args, **kwargs)
            except Unavailable as error:
                if "Connection broken" not in str(error):
                    raise
            sleep(pause)
        return once(*args, **kwargs)

    def once(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except MlflowException as error:
            if error.error_code in CREDENTIALS:
                raise Unavailable(refused()) from error
            if is_of_the_network(error):
                raise Unavailable(f"MLflow failed while it was being used: {_one_line(error)}") from error
            raise
        except OSError as error:  # what requests raises, where MLflow lets it through (artifacts)
            if not type(error).__module__.startswith("requests"):
                raise
            response = getattr(error, "response", None)
            if getattr(response, "status_code", None) in (401, 403):
                raise Unavailable(refused()) from error
            raise Unavailable(f"MLflow failed while it was being used: {_one_line(error)}") from error

    return wrapped


def is_of_the_network(error: MlflowException) -> bool:
    return str(error).startswith(NETWORK)


def refused(uri: str | None = None) -> str:
    where = f" at {uri}" if uri else ""
    return (
        f"MLflow{where} refuses the credentials: check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
        "(or MLFLOW_TRACKING_TOKEN)"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
