"""The client of Modelyard, a model registry: `Client` for programs, `modelyard` for the shell."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelyard.client import Client
    from modelyard.errors import (
        BadAnswer,
        BadFolder,
        BadName,
        Busy,
        Denied,
        Interrupted,
        JobFailed,
        ModelyardError,
        NotFound,
        NotSignedIn,
        Refused,
        Unreachable,
        UnsafeFiles,
    )
    from modelyard.pull import Pulled
    from modelyard.push import Pushed

__version__ = "0.1.0"
__all__ = [
    "BadAnswer",
    "BadFolder",
    "BadName",
    "Busy",
    "Client",
    "Denied",
    "Interrupted",
    "JobFailed",
    "ModelyardError",
    "NotFound",
    "NotSignedIn",
    "Pulled",
    "Pushed",
    "Refused",
    "Unreachable",
    "UnsafeFiles",
    "__version__",
]
_HOMES = {"Client": "client", "Pulled": "pull", "Pushed": "push"}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: `modelyard --help` waits for no HTTP library."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - loaded late, as all of this

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
