"""Damage as files suffer it or as an attacker does it, by a seed."""

import random

EDGES = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80",
    b"1e999",
    b"-1",
    b"null",
)
MOST = 4  # changes at once


def mutated(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    made = bytearray(data)
    for _ in range(rng.randint(1, MOST)):
        rng.choice((flip, flip, overwrite, insert, delete, repeat, cut, splice))(made, rng, others)
    return bytes(made)


def flip(made: bytearray, rng: random.Random, _: list[bytes]) -> None:
    if made:
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)


def overwrite(made: bytearray, rng: random.Random, _: list[bytes]) -> None:
    place, edge = rng.randint(0, len(made)), rng.choice(EDGES)
    made[place : place + len(edge)] = edge


def insert(made: bytearray, rng: random.Random, _: list[bytes]) -> None:
    place = rng.randint(0, len(made))
    made[place:place] = rng.choice((rng.randbytes(rng.randint(1, 8)), rng.choice(EDGES)))


def _part(length: int, rng: random.Random) -> slice:
    begin = rng.randint(0, length)
    return slice(begin, begin + rng.randint(0, min(64, length - begin)))


def delete(made: bytearray, rng: random.Random, _: list[bytes]) -> None:
    del made[_part(len(made), rng)]


def repeat(made: bytearray, rng: random.Random, _: list[bytes]) -> None:
    part = _part(len(made), rng)
    made[part.start : part.start] = made[part] * rng.randint(1, 8)


def cut(made: bytearray, rng: random.Random, _: list[bytes]) -> None:
    if rng.random() < 0.2:
        del made[rng.randint(0, len(made)) :]


def splice(made: bytearray, rng: random.Random, others: list[bytes]) -> None:
    other = rng.choice(others)
    part = _part(len(other), rng)
    place = rng.choice((part.start, rng.randint(0, len(made))))
    made[place : place + part.stop - part.start] = other[part]
