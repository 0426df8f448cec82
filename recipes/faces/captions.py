"""Attributes of a portrait and the sentences that describe them."""

import re
from dataclasses import dataclass

import numpy as np

AGES = ("teens", "twenties", "thirties", "forties", "fifties", "sixties", "seventies")
BEARDS = ("no beard", "stubble", "a short beard", "a beard of medium length", "a long beard")
HAIR_COLORS = ("black", "brown", "blond", "red", "gray", "white")

MEDIUM_BEARD_WITHOUT_ARTICLE = "beard of medium length"
HAIR_PHRASES = {
    "short": "short {color} hair",
    "medium": "{color} hair of medium length",
    "long": "long {color} hair",
}
PLAIN_HAIR_PHRASE = "{color} hair"
AGE_PHRASE = "is in {his} {age}"
HAS_PHRASE = "has {things}"
GLASSES_PHRASE = "wears glasses"
SMILE_PHRASE = "is smiling"

# Words that no caption contains, and what captions say instead.
SYNONYMS = {
    "guy": "man", "male": "man", "gentleman": "man", "boy": "man", "men": "man",
    "lady": "woman", "female": "woman", "girl": "woman", "women": "woman",
    "young": "teens|twenties|thirties", "younger": "teens|twenties|thirties", "teenager": "teens", "teenage": "teens",
    "old": "fifties|sixties|seventies", "older": "fifties|sixties|seventies", "elderly": "sixties|seventies",
    "twenty": "twenties", "thirty": "thirties", "forty": "forties", "fifty": "fifties", "sixty": "sixties",
    "seventy": "seventies", "20s": "twenties", "30s": "thirties", "40s": "forties", "50s": "fifties",
    "60s": "sixties", "70s": "seventies",
    "bearded": "has a beard", "unshaven": "stubble", "stubbly": "stubble", "shaven": "no beard", "shaved": "no beard",
    "blonde": "blond", "golden": "blond", "grey": "gray", "silver": "gray", "ginger": "red", "brunette": "brown",
    "haired": "hair", "hairs": "hair", "spectacles": "glasses", "eyeglasses": "glasses",
    "smile": "is smiling", "smiles": "is smiling", "grinning": "is smiling", "laughing": "is smiling",
    "with": "has", "having": "has", "wearing": "wears", "an": "a", "without": "no",
}  # fmt: skip

LONGEST = 30  # words and full stops of a caption; its first and last token make it 32

GRAY_OR_WHITE_BY_AGE = (0.03, 0.03, 0.04, 0.10, 0.45, 0.75, 0.85)
WHITE_WITHIN_GRAY_BY_AGE = (0.5, 0.5, 0.4, 0.25, 0.3, 0.45, 0.65)


@dataclass(frozen=True)
class Attributes:
    """What a caption or a label map may say about a portrait."""

    male: bool
    age: int
    beard: int
    hair_color: str
    hair: str
    bangs: bool
    glasses: bool
    hat: bool
    earrings: bool
    necklace: bool
    smile: float


@dataclass(frozen=True)
class Grammar:
    """The words that change with the sex of the person."""

    openings: tuple[str, ...]
    pronoun: str
    possessive: str


MAN = Grammar(("This man", "The man"), "He", "his")
WOMAN = Grammar(("This woman", "The woman"), "She", "her")


def sample_hair_color(age: int, rng: np.random.Generator) -> str:
    turned_gray = rng.random() < GRAY_OR_WHITE_BY_AGE[age]
    white = rng.random() < WHITE_WITHIN_GRAY_BY_AGE[age]
    pigmented = str(rng.choice(HAIR_COLORS[:4], p=(0.29, 0.29, 0.25, 0.17)))
    if turned_gray:
        return "white" if white else "gray"
    return pigmented


def sample_attributes(rng: np.random.Generator) -> Attributes:
    """Draw a person; what shows in the label map is drawn independently of age and hair colour."""
    male = bool(rng.random() < 0.5)
    age = int(rng.integers(len(AGES)))
    beard = int(rng.choice(len(BEARDS), p=(0.24, 0.17, 0.19, 0.19, 0.21)))
    lengths = (0.12, 0.74, 0.09, 0.05) if male else (0.0, 0.20, 0.38, 0.42)
    hair = str(rng.choice(("bald", "short", "medium", "long"), p=lengths))
    chances = rng.random(5)
    return Attributes(
        male=male,
        age=age,
        beard=beard if male else 0,
        hair_color=sample_hair_color(age, rng),
        hair=hair,
        bangs=bool(chances[0] < (0.18 if male else 0.32)) and hair != "bald",
        glasses=bool(chances[1] < 0.18),
        hat=bool(chances[2] < 0.06),
        earrings=bool(chances[3] < 0.3) and not male,
        necklace=bool(chances[4] < 0.22) and not male,
        smile=float(np.clip(rng.normal(0.35, 0.45), -0.3, 1.0)),
    )


def beard_phrase(attributes: Attributes, rng: np.random.Generator) -> str | None:
    """The beard if it is to be mentioned: always when there is one, often when a man has none."""
    mention_none = rng.random() < 0.6
    without_article = rng.random() < 0.5
    if not attributes.male or (attributes.beard == 0 and not mention_none):
        return None
    if attributes.beard == 3 and without_article:
        return MEDIUM_BEARD_WITHOUT_ARTICLE
    return BEARDS[attributes.beard]


def hair_phrase(attributes: Attributes, rng: np.random.Generator) -> str | None:
    mention = rng.random() < 0.68
    with_length = rng.random() < 0.4
    if attributes.hair == "bald" or not mention:
        return None
    phrase = HAIR_PHRASES[attributes.hair] if with_length else PLAIN_HAIR_PHRASE
    return phrase.format(color=attributes.hair_color)


def possession_clauses(attributes: Attributes, rng: np.random.Generator) -> list[str]:
    """Clauses about beard and hair, now and then joined into one."""
    join = rng.random() < 0.3
    things = [phrase for phrase in (beard_phrase(attributes, rng), hair_phrase(attributes, rng)) if phrase]
    if join and len(things) == 2:
        things = [" and ".join(reversed(things))]
    return [HAS_PHRASE.format(things=thing) for thing in things]


def caption(attributes: Attributes, rng: np.random.Generator) -> str:
    """A few plain sentences; the first names the person, the others use a pronoun."""
    grammar = MAN if attributes.male else WOMAN
    opening = str(rng.choice(grammar.openings))
    clauses = possession_clauses(attributes, rng)
    age_clause = AGE_PHRASE.format(his=grammar.possessive, age=AGES[attributes.age])
    clauses.insert(int(rng.integers(len(clauses) + 1)), age_clause)
    mention_glasses, mention_smile = rng.random(2) < (0.6, 0.5)
    if attributes.glasses and mention_glasses:
        clauses.append(GLASSES_PHRASE)
    if attributes.smile > 0.5 and mention_smile:
        clauses.append(SMILE_PHRASE)
    subjects = [opening] + [grammar.pronoun] * (len(clauses) - 1)
    sentences = [f"{subject} {clause}." for subject, clause in zip(subjects, clauses, strict=True)]
    while sum(map(length, sentences)) > LONGEST:
        sentences.pop()
    return " ".join(sentences)


def length(sentence: str) -> int:
    """In words and full stops."""
    return len(re.findall(r"\w+|[^\w\s]", sentence))


def words() -> list[str]:
    """Every lower-case word and punctuation mark a caption can contain, sorted."""
    subjects = [word for grammar in (MAN, WOMAN) for word in (*grammar.openings, grammar.pronoun, grammar.possessive)]
    phrases = (*HAIR_PHRASES.values(), AGE_PHRASE, HAS_PHRASE, GLASSES_PHRASE, SMILE_PHRASE, "and", ".")
    text = " ".join((*subjects, *AGES, *BEARDS, *HAIR_COLORS, *phrases)).lower()
    without_slots = re.sub(r"\{\w+\}", " ", text)
    return sorted(set(re.findall(r"\w+|[^\w\s]", without_slots)))
