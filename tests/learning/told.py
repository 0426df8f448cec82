"""Experts that know nothing but what they are told: their condition is x_0 with an error, so the best mix is known."""

import numpy as np

from cdiff_rt import Expert, Parameterisation, compose

SHAPE = (2, 8, 8)
X0 = Parameterisation("x0")


def told(x, time, c):
    return c.copy()


def pipeline(*names, shape=SHAPE, **how):
    """The first claims most of the influence, in every place."""
    logit = lambda name: (lambda x, alpha_bar, c: 3.0) if name == names[0] else None
    return compose({name: Expert(told, X0, shape, logit(name)) for name in names}, shape, **how)


def pairs(count, errors, shape=SHAPE, seed=0):
    """`errors` by name: of standard normal draws [3, *shape] and x_0, what an expert is told in place of x_0 differs by."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        x0, draws = generator.normal(size=shape).astype(np.float32), generator.normal(size=(3, *shape))
        found.append((x0, {name: x0 + error(draws) for name, error in errors.items()}))
    return found


def of(variance, draw):
    return lambda draws: variance**0.5 * draws[draw]
