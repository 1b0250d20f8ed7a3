"""Find, train and honestly judge networks that tell real faces from generated ones.

`Detector` is what other programs need; it is imported when it is asked for, so that a command's --help need not wait.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepfake.judging import Detector

__all__ = ["Detector"]


def __getattr__(name: str) -> Any:
    if name == "Detector":
        from deepfake.judging import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
