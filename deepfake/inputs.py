"""What a network wants its images to be: the one fact that data and models share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InputSpec:
    """Read from the network's own pretrained configuration, handed to the data by the command."""

    size: int  # pixels, square
    mean: tuple[float, float, float]  # of RGB in [0, 1]
    std: tuple[float, float, float]
    interpolation: str  # bilinear | bicubic
