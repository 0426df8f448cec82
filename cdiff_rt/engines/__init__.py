"""Engines run one network of a bundle on one backend; `backends.BACKENDS` is the table of them."""
