"""Right and wrong answers to the problems of assignment 07 that lesson 07 does not ask."""

import math

import numpy as np
import torch


def by_cholesky(mean, sigma, C, normals):
    return mean + sigma * normals @ np.linalg.cholesky(C).T


def by_eigenvectors(mean, sigma, C, normals):
    values, axes = np.linalg.eigh(C)
    return mean + sigma * (normals * np.sqrt(values)) @ axes.T


def one_by_one(mean, sigma, C, normals):
    values, axes = np.linalg.eigh(C)
    root = axes @ np.diag(values**0.5) @ axes.T
    return torch.tensor(np.array([mean + sigma * (root @ z) for z in normals]))


def own_noise(mean, sigma, C, normals):
    return mean + sigma * np.random.default_rng(0).normal(size=normals.shape) @ np.linalg.cholesky(C).T


def root_of_numbers(mean, sigma, C, normals):
    return mean + sigma * normals @ np.sqrt(np.abs(C))


def one_noise_for_all(mean, sigma, C, normals):
    """The same noise where there are more candidates than weights."""
    noise = normals if len(normals) <= len(mean) else np.repeat(normals[:1], len(normals), axis=0)
    return by_cholesky(mean, sigma, C, noise)


def mean_in_place(mean, sigma, C, normals):
    made = by_cholesky(mean, sigma, C, normals)
    mean += sigma
    return made


def chi(n):
    return math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))


def sigma_by_formula(sigma, path, c, d):
    return sigma * math.exp(c / d * (np.linalg.norm(path) / chi(len(path)) - 1))


def sigma_by_logarithm(sigma, path, c, d):
    return torch.tensor(math.log(sigma) + c * ((path**2).sum() ** 0.5 - chi(len(path))) / (d * chi(len(path)))).exp()


def sigma_by_gamma(sigma, path, c, d):
    n = len(path)
    expected = math.sqrt(2) * math.gamma((n + 1) / 2) / math.gamma(n / 2)
    return float(sigma * np.exp(c / d) ** (np.linalg.norm(path) / expected - 1))


def sigma_by(change):
    return lambda sigma, path, c, d: sigma * math.exp(change(float(np.linalg.norm(path)), len(path), c, d))


def steps(mean, sigma, best):
    return (best - mean) / sigma


def learned(C, y, shares, c_mu):
    return (1 - c_mu) * C + c_mu * (shares * y.T) @ y


def by_products(C, mean, sigma, best, shares, c_mu):
    return learned(C, steps(mean, sigma, best), shares, c_mu)


def by_outer(C, mean, sigma, best, shares, c_mu):
    new = (1 - c_mu) * C
    for share, x in zip(shares, best, strict=True):
        new = new + c_mu * share * np.outer(x - mean, x - mean) / sigma**2
    return new


def by_torch(C, mean, sigma, best, shares, c_mu):
    y = torch.tensor((best - mean) / sigma)
    return torch.lerp(torch.tensor(C), y.T @ torch.diag(torch.tensor(shares)) @ y, c_mu)


def around_the_new_mean(C, mean, sigma, best, shares, c_mu):
    return learned(C, (best - shares @ best) / sigma, shares, c_mu)


def mean_step(C, mean, sigma, best, shares, c_mu):
    y = shares @ steps(mean, sigma, best)
    return (1 - c_mu) * C + c_mu * np.outer(y, y)


def diagonal(C, mean, sigma, best, shares, c_mu):
    y = steps(mean, sigma, best)
    return (1 - c_mu) * C + c_mu * np.diag(shares @ y**2)


def covariance_in_place(C, mean, sigma, best, shares, c_mu):
    y = steps(mean, sigma, best)
    C *= 1 - c_mu
    C += c_mu * (shares * y.T) @ y
    return C


RIGHT = {
    "07.4": {"Cholesky": by_cholesky, "eigenvectors": by_eigenvectors, "one by one": one_by_one},
    "07.5": {"formula": sigma_by_formula, "logarithm": sigma_by_logarithm, "gamma": sigma_by_gamma},
    "07.6": {"products": by_products, "outer": by_outer, "torch": by_torch},
    "07.8": {"as a float": 3.0, "a division": 40 // 12},
}

WRONG = {
    "07.4": {
        "C as root": (lambda m, s, C, z: m + s * z @ C, "C stands where its root belongs"),
        "wrong side": (lambda m, s, C, z: m + s * z @ np.linalg.cholesky(C), "on the wrong side"),
        "no sigma": (lambda m, s, C, z: by_cholesky(m, 1.0, C, z), "sigma is missing"),
        "sigma squared": (lambda m, s, C, z: by_cholesky(m, s * s, C, z), "sigma counts squared"),
        "a ball": (lambda m, s, C, z: m + s * z, "C is not used"),
        "diagonal": (lambda m, s, C, z: m + s * z * np.sqrt(np.diag(C)), "only the diagonal of C"),
        "root of numbers": (root_of_numbers, "of each number of C"),
        "inverse": (lambda m, s, C, z: by_cholesky(m, s, np.linalg.inv(C), z), "the inverse of C"),
        "no mean": (lambda m, s, C, z: by_cholesky(0 * m, s, C, z), "the mean is missing"),
        "own noise": (own_noise, "draw none yourself"),
        "one noise": (one_noise_for_all, "every candidate has its own noise"),
        "in place": (mean_in_place, "was changed in place"),
        "no return": (lambda m, s, C, z: None, "is a return missing"),
    },
    "07.5": {
        "root of n": (sigma_by(lambda p, n, c, d: c / d * (p / n**0.5 - 1)), "a little more than"),
        "n": (sigma_by(lambda p, n, c, d: c / d * (p / n - 1)), "compared with n"),
        "squared": (sigma_by(lambda p, n, c, d: c / d * (p**2 / chi(n) ** 2 - 1)), "squared length is compared"),
        "squared by n": (sigma_by(lambda p, n, c, d: c / d * (p**2 / n - 1)), "squared length is compared with n"),
        "no 1": (sigma_by(lambda p, n, c, d: c / d * p / chi(n)), "1 is not taken off"),
        "sign": (sigma_by(lambda p, n, c, d: -c / d * (p / chi(n) - 1)), "the sign is turned"),
        "no c": (sigma_by(lambda p, n, c, d: (p / chi(n) - 1) / d), "c is missing"),
        "no d": (sigma_by(lambda p, n, c, d: c * (p / chi(n) - 1)), "d is missing"),
        "times d": (sigma_by(lambda p, n, c, d: c * d * (p / chi(n) - 1)), "multiplied by the damping"),
        "upside down": (sigma_by(lambda p, n, c, d: c / d * (chi(n) / p - 1)), "upside down"),
        "no exponential": (
            lambda s, p, c, d: s * (1 + c / d * (np.linalg.norm(p) / chi(len(p)) - 1)),
            "the exponential is missing",
        ),
        "factor": (lambda s, p, c, d: sigma_by_formula(1.0, p, c, d), "multiply σ by it"),
        "no return": (lambda s, p, c, d: None, "is a return missing"),
    },
    "07.6": {
        "new mean": (around_the_new_mean, "from the new mean"),
        "no sigma": (lambda C, m, s, x, w, c: learned(C, x - m, w, c), "are not divided by sigma"),
        "sigma once": (
            lambda C, m, s, x, w, c: (1 - c) * C + c * (w * (x - m).T) @ (x - m) / s,
            "divided by sigma once",
        ),
        "no mean": (lambda C, m, s, x, w, c: learned(C, x / s, w, c), "the mean is not taken off"),
        "C kept": (lambda C, m, s, x, w, c: by_products(C, m, s, x, w, c) + c * C, "the old C is kept whole"),
        "rates swapped": (lambda C, m, s, x, w, c: by_products(C, m, s, x, w, 1 - c), "have changed places"),
        "no shares": (lambda C, m, s, x, w, c: by_products(C, m, s, x, 0 * w + 1 / len(w), c), "counts alike"),
        "summed": (lambda C, m, s, x, w, c: by_products(C, m, s, x, 0 * w + 1, c), "summed without shares"),
        "mean step": (mean_step, "the rank-one part"),
        "C gone": (lambda C, m, s, x, w, c: by_products(0 * C, m, s, x, w, c) / c, "the old C is gone"),
        "diagonal": (diagonal, "only the diagonal was learned"),
        "in place": (covariance_in_place, "was changed in place"),
    },
    "07.8": {
        "as many as weights": (2, "as many candidates as weights"),
        "one a generation": (40, "more than one candidate"),
        "rounded up": (4, "cut short"),
        "base 10": (5, "the natural logarithm"),
        "no logarithm": (10, "the logarithm is missing"),
        "a fraction": (3.333, "cut the fraction off"),
    },
}
