"""
Two small worlds of English reviews, written by a seeded grammar: diners about restaurants (in the past tense) and
viewers about films (in the present tense). The worlds have their own nouns, adjectives and sentence patterns and share
part of the words of praise and blame, so a model can carry something from one to the other. A review praises or blames
on balance: contrasts, negations, hedges and stray remarks of the other side keep single words from telling the label.
"""

import random
import re
from dataclasses import dataclass


LABELS = ("negative", "positive")

# Chances: of an opinion to be weighed against one of the other side, of its adjective to be negated, of a hedge, of a
# stray opinion of the other side, and of a closing verdict. With these a linear model on word pairs gets 96 % right.
CONTRAST, NEGATED, HEDGED, STRAY, VERDICT = 0.08, 0.1, 0.25, 0.03, 0.5

GOOD = (
    "wonderful excellent charming delightful superb lovely impressive memorable brilliant outstanding perfect pleasant"
    " satisfying remarkable fine"
).split()
BAD = (
    "awful disappointing dreadful terrible poor unpleasant mediocre horrible annoying forgettable weak tiresome sad"
    " sloppy miserable"
).split()
NEGATIONS = ("not", "not exactly", "hardly", "far from", "anything but")
DEGREES = ("", "", "", "really", "very", "quite", "rather", "truly", "simply", "surprisingly", "fairly")
HEDGES = (
    "to be fair", "I suppose", "in a way", "all things considered", "I must admit", "for what it is worth",
    "to my mind", "as far as I can tell", "more or less", "if I am honest",
)  # fmt: skip


@dataclass(frozen=True)
class Aspect:
    """What a review can speak of, with the words of praise and blame that only fit there."""

    nouns: tuple[str, ...]
    good: list[str]
    bad: list[str]


@dataclass(frozen=True)
class World:
    """One kind of review. `{x}` in a pattern is a slot; `slots` says what goes there."""

    aspects: tuple[Aspect, ...]
    openings: tuple[str, ...]
    clauses: tuple[str, ...]
    remarks: tuple[str, ...]
    verdicts: tuple[tuple[str, ...], tuple[str, ...]]
    slots: dict[str, tuple[str, ...]]


RESTAURANTS = World(
    aspects=(
        Aspect(
            ("soup", "steak", "salad", "pasta", "fish", "curry", "bread", "dessert", "risotto", "burger", "breakfast",
             "chicken", "pizza", "sauce", "main course", "cheese plate", "coffee", "seafood platter"),
            "fresh tender crisp juicy flavourful tasty fragrant delicious creamy generous".split(),
            "stale greasy soggy overcooked bland salty burnt lukewarm watery tough".split(),
        ),
        Aspect(
            ("waiter", "service", "waitress", "host", "bartender", "manager", "kitchen team", "owner"),
            "attentive friendly prompt courteous polite welcoming helpful quick patient".split(),
            "rude slow careless inattentive impatient grumpy absent unfriendly confused".split(),
        ),
        Aspect(
            ("dining room", "terrace", "place", "table by the window", "garden", "bar", "interior", "music"),
            "cosy clean quiet spotless relaxing elegant inviting airy".split(),
            "noisy dirty cramped smoky sticky crowded draughty gloomy".split(),
        ),
        Aspect(
            ("bill", "lunch menu", "wine list", "set menu", "price of the drinks", "portion size"),
            "reasonable fair affordable honest".split(),
            "overpriced outrageous stingy excessive".split(),
        ),
    ),
    openings=(
        "We booked a table for {number} on {day} evening.",
        "My {friend} and I stopped here for {meal} after a long walk.",
        "I came in on {day} with my {friend} and ordered the {dish} for {meal}.",
        "This was our {ordinal} visit to the little restaurant near the {spot}.",
        "On {day} we had {meal} at the new place by the {spot}.",
        "My {friend} had suggested this restaurant for {meal}.",
    ),
    clauses=(
        "the {noun} was {quality}", "the {noun} we had that evening was {quality}", "our {noun} turned out {quality}",
        "we found the {noun} {quality}", "everyone at the table called the {noun} {quality}",
        "the {noun} seemed {quality} to us",
    ),
    remarks=(
        "We waited about {number} minutes before the plates arrived.", "My {friend} had the {dish}.",
        "They also serve {meal} on {day}.", "You can park behind the {spot}.",
        "We shared the {dish} and ordered tap water.", "The menu changes every {day}.",
    ),
    verdicts=(
        ("We will not be eating there again.", "Save your money and cook at home.", "I left hungry and unhappy.",
         "Next time we go somewhere else.", "One star is all I can give."),
        ("We will be back next week.", "I already booked our next dinner there.", "Go there and bring an appetite.",
         "My plate went back empty.", "Five stars from the whole table."),
    ),
    slots={
        "number": ("two", "three", "four", "five", "six", "ten", "twenty"),
        "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
        "friend": ("sister", "husband", "wife", "boss", "neighbour", "mother", "colleague", "cousin"),
        "meal": ("lunch", "dinner", "brunch", "supper", "an early dinner", "a late lunch"),
        "dish": ("lamb", "noodles", "tacos", "grilled trout", "mushroom pie", "sushi", "ribs", "dumplings"),
        "spot": ("station", "harbour", "market", "church", "river", "town hall", "museum"),
        "ordinal": ("first", "second", "third", "fourth"),
    },
)  # fmt: skip

FILMS = World(
    aspects=(
        Aspect(
            ("plot", "story", "script", "ending", "twist in the middle", "dialogue", "premise", "final act"),
            "gripping clever witty original suspenseful coherent surprising layered touching".split(),
            "predictable contrived shallow incoherent clumsy implausible pointless muddled hollow".split(),
        ),
        Aspect(
            ("leading actor", "lead actress", "cast", "villain", "hero", "supporting cast", "young actor", "narrator"),
            "convincing charismatic nuanced believable magnetic subtle heartfelt natural".split(),
            "wooden unconvincing miscast lifeless hammy stiff forced expressionless".split(),
        ),
        Aspect(
            ("camera work", "soundtrack", "opening scene", "editing", "chase scene", "score", "lighting", "scenery"),
            "stunning inventive atmospheric haunting gorgeous stylish vivid hypnotic".split(),
            "choppy ugly shaky cheap muddy deafening amateurish murky".split(),
        ),
        Aspect(
            ("pacing", "direction", "first hour", "mood", "humour", "romance", "sequel", "remake"),
            "thrilling assured moving funny tense absorbing".split(),
            "dull tedious endless sluggish sentimental repetitive".split(),
        ),
    ),
    openings=(
        "{director} returns with a {genre} about a {figure} in {city}.",
        "I watch a lot of {genre} movies, and this one follows a {figure}.",
        "The film tells of a {figure} who comes back to {city} in {year}.",
        "Set in {city}, this {genre} runs for {number} minutes.",
        "Here is another {genre} from {director}, shot in {city}.",
        "A {figure} and a {figure} meet in {city}, and so the movie begins.",
    ),
    clauses=(
        "the {noun} is {quality}", "the {noun} feels {quality} from beginning to end",
        "what stays with me is a {noun} that is {quality}", "{director} gives us a {noun} that is {quality}",
        "on the big screen the {noun} looks {quality}", "the {noun} remains {quality} throughout",
    ),
    remarks=(
        "{director} also wrote the screenplay.", "The credits roll after {number} minutes.",
        "Half of the scenes take place in {city}.", "The book it is based on came out in {year}.",
        "A {figure} appears in nearly every shot.", "It has been compared to a {genre} of {year}.",
    ),
    verdicts=(
        ("I want those two hours of my life back.", "Skip it and read the book.", "Half of the audience walks out.",
         "Wait until it is on television, then watch something else.", "Nobody needs to see this."),
        ("I could watch it again tonight.", "Do not miss it while it is in cinemas.", "The audience applauds.",
         "Buy a ticket before it is gone.", "It deserves every award it can get."),
    ),
    slots={
        "director": ("Marlow", "Okafor", "Lindqvist", "Tanaka", "Ferreira", "Dubois", "Novak", "Hargreaves"),
        "genre": ("thriller", "comedy", "drama", "western", "horror film", "musical", "war film", "documentary"),
        "figure": ("detective", "teacher", "soldier", "pianist", "widow", "thief", "farmer", "pilot", "journalist"),
        "city": ("Lisbon", "Chicago", "Vienna", "Lagos", "Kyoto", "Glasgow", "Havana", "Oslo"),
        "year": ("1926", "1947", "1958", "1969", "1973", "1984", "1999", "2008"),
        "number": ("ninety", "eighty", "one hundred", "a hundred and ten", "seventy"),
    },
)  # fmt: skip

WORLDS = {"restaurants": RESTAURANTS, "films": FILMS}


def _fill(rng: random.Random, world: World, pattern: str, **given: str) -> str:
    while "{" in pattern:  # one slot at a time, so that a slot used twice gets two draws
        head, slot, tail = pattern.replace("{", "}", 1).split("}", 2)
        pattern = head + (given[slot] if slot in given else rng.choice(world.slots[slot])) + tail
    return pattern


def _clause(rng: random.Random, world: World, positive: bool) -> str:
    aspect = rng.choice(world.aspects)
    negated = rng.random() < NEGATED
    words = (aspect.good + GOOD) if positive != negated else (aspect.bad + BAD)
    quality = f"{rng.choice(NEGATIONS if negated else DEGREES)} {rng.choice(words)}".strip()
    return _fill(rng, world, rng.choice(world.clauses), noun=rng.choice(aspect.nouns), quality=quality)


def _opinion(rng: random.Random, world: World, positive: bool) -> str:
    clause = _clause(rng, world, positive)
    if rng.random() < CONTRAST:
        other = _clause(rng, world, not positive)
        clause = rng.choice((f"{other}, but {clause}", f"although {other}, {clause}", f"while {other}, {clause}"))
    if rng.random() < HEDGED:
        hedge = rng.choice(HEDGES)
        clause = rng.choice((f"{hedge}, {clause}", f"{clause}, {hedge}"))
    return clause[0].upper() + clause[1:] + "."


def write_review(rng: random.Random, world: World, positive: bool, *, shortest: int = 20, longest: int = 60) -> str:
    """
    One review of a world.

    Args:
        rng (`random.Random`): source of all choices.
        world (`World`): what it is about.
        positive (`bool`): praise or blame on balance.
        shortest (`int`, *optional*, defaults to 20): smallest number of words.
        longest (`int`, *optional*, defaults to 60): largest number of words.
    """
    while True:
        count = rng.randint(2, 4)
        strays = sum(rng.random() < STRAY for _ in range(count)) if count > 2 else 0
        sides = [positive] * count
        for position in rng.sample(range(count), min(strays, (count - 1) // 2)):
            sides[position] = not positive
        sentences = [_fill(rng, world, rng.choice(world.openings)), *(_opinion(rng, world, s) for s in sides)]
        if rng.random() < VERDICT:
            sentences.append(rng.choice(world.verdicts[positive]))
        else:
            sentences.insert(rng.randint(1, count), _fill(rng, world, rng.choice(world.remarks)))
        text = re.sub(r"\ba (?=[aeiou])", "an ", " ".join(sentences))
        if shortest <= len(text.split()) <= longest:
            return text


def write_reviews(name: str, count: int, seed: str) -> tuple[list[str], list[int]]:
    """
    `count` reviews of the world `name` (`"restaurants"` | `"films"`) and their labels (0 negative, 1 positive, in
    turn). The same name, count and seed give the same texts on every machine.
    """
    rng = random.Random(f"{name}/{seed}")
    labels = [index % 2 for index in range(count)]
    return [write_review(rng, WORLDS[name], bool(label)) for label in labels], labels
