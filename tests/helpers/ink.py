"""How well ink can be read on its page: the contrast of WCAG 2.2."""

import numpy as np
from matplotlib.colors import to_rgb


def linear(colour: object) -> np.ndarray:
    """Linear sRGB (red, green, blue) of a colour as matplotlib takes it."""
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(ink: object, page: object = "white") -> float:
    """The ratio of two colours' luminances, 1 to 21: words need 4.5, lines and marks 3."""
    light, dark = sorted((linear(colour) @ (0.2126, 0.7152, 0.0722) for colour in (ink, page)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
