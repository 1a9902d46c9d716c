"""Right and wrong answers to the problem of lesson 00, the scaling of an adapter."""

import math

RIGHT = {
    "00.1": {
        "a quotient": lambda alpha, rank: alpha / rank,
        "a power": lambda alpha, rank: alpha * rank**-1,
        "a product": lambda alpha, rank: (1 / rank) * alpha,
    }
}

WRONG = {
    "00.1": {
        "alpha": (lambda a, r: a, "not divided by the rank"),
        "upside down": (lambda a, r: r / a, "upside down"),
        "multiplied": (lambda a, r: a * r, "multiplied by the rank"),
        "root": (lambda a, r: a / math.sqrt(r), "rank-stabilised"),
        "whole": (lambda a, r: a // r, "use / instead of //"),
    }
}
