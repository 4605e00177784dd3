"""The grammar behind `data=demo_reviews`: reviews of films and products whose sentiment needs word order to read.

Why not a word list: with negation ("hardly dull") and contrast ("a dull start, a superb end") the same words stand in
both classes, so a bag of words stays near 70% and fine-tuning has something to learn. Pure; `demo` cuts its stream
into splits with label noise, `models.pretrain` reads another part of the stream. Polarity is +1 or -1 throughout.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

POSITIVE, NEGATIVE = 1, -1


@dataclass(frozen=True)
class Domain:
    """What a review can be about."""

    things: tuple[str, ...]
    aspects: tuple[str, ...]
    facts: tuple[str, ...]


def words(text: str) -> tuple[str, ...]:
    """Comma-separated words as a tuple."""
    return tuple(word.strip() for word in text.split(","))


FILM = Domain(
    things=words(
        "film, movie, thriller, comedy, drama, sequel, documentary, western, musical, cartoon, remake, romance, mystery"
    ),
    aspects=words(
        "plot, acting, script, ending, soundtrack, cast, dialogue, pacing, camera work, opening, second act, villain, "
        "humour, direction, love story, chase, final scene, narration, costume design, leading role"
    ),
    facts=(
        "It runs for {number} minutes.",
        "It was shot in {place}.",
        "The story is set in {place}.",
        "{name} wrote the script.",
        "{name} plays the older brother.",
        "We saw it on {day}.",
        "The cinema was half full.",
        "It is not a remake.",
        "It is the second part of three.",
        "My {relative} chose it.",
        "It was made in {month}.",
        "There are subtitles in {number} languages.",
    ),
)
PRODUCT = Domain(
    things=words(
        "phone, laptop, blender, kettle, vacuum, headset, camera, tent, jacket, mattress, keyboard, printer, speaker, "
        "lamp, backpack, toaster, watch"
    ),
    aspects=words(
        "battery, screen, build quality, price, packaging, manual, motor, design, handle, sound, customer service, "
        "delivery, app, zip, lid, fabric, charger, finish, colour, software"
    ),
    facts=(
        "It weighs {number} grams.",
        "It was made in {place}.",
        "It comes in {colour} and {colour}.",
        "The box holds {number} parts.",
        "I ordered it on {day}.",
        "It arrived in {month}.",
        "My {relative} has the same one.",
        "The cable is {number} inches long.",
        "It is not the larger version.",
        "I use it in the {room}.",
        "It replaces one from {place}.",
        "The label is {colour}.",
    ),
)
FILLERS: dict[str, tuple[str, ...]] = {
    "number": words("two, three, five, eight, ten, twelve, forty, fifty, sixty, ninety, eighty, ninety five"),
    "place": words("Oslo, Rome, Lyon, Porto, Cork, Ghent, Kyoto, Lima, Boston, Tunis, Hanoi, Bergen"),
    "name": words("Anna Berg, Omar Haddad, Lucia Moreno, Ken Sato, Maria Novak, Paul Adams, Nina Okafor, Jan Visser"),
    "day": words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "month": words("January, March, April, May, June, July, August, October, December"),
    "relative": words("sister, brother, mother, father, cousin, neighbour, uncle, daughter"),
    "colour": words("blue, green, red, black, white, grey, yellow, brown"),
    "room": words("kitchen, office, garage, bedroom, garden, hall"),
}
STRONG = {
    POSITIVE: words(
        "superb, brilliant, wonderful, excellent, outstanding, magnificent, delightful, stunning, marvellous, "
        "terrific, perfect, fantastic"
    ),
    NEGATIVE: words(
        "terrible, awful, dreadful, horrible, atrocious, abysmal, appalling, disastrous, hopeless, miserable, "
        "pathetic, ghastly"
    ),
}
MILD = {
    POSITIVE: words(
        "good, nice, decent, pleasant, solid, enjoyable, charming, fine, clever, likeable, polished, reliable, sturdy, "
        "funny, gripping, moving, fresh, warm, witty, elegant, smooth, convincing, engaging, impressive, satisfying, "
        "thoughtful, lively, graceful"
    ),
    NEGATIVE: words(
        "bad, dull, weak, boring, poor, flat, clumsy, tedious, bland, sloppy, noisy, flimsy, unreliable, predictable, "
        "slow, shallow, stale, annoying, confusing, messy, forgettable, lifeless, cheap, shoddy, disappointing, "
        "awkward, ugly, tiresome"
    ),
}
NOUNS = {
    POSITIVE: words("charm, wit, heart, style, warmth, energy, taste, care, imagination, class"),
    NEGATIVE: words("flaws, faults, defects, problems, mistakes, weaknesses, errors, gaps, nonsense, cheap tricks"),
}
LIKE = {  # base form, past form
    POSITIVE: (
        ("enjoy", "enjoyed"),
        ("like", "liked"),
        ("love", "loved"),
        ("admire", "admired"),
        ("praise", "praised"),
    ),
    NEGATIVE: (
        ("dislike", "disliked"),
        ("hate", "hated"),
        ("regret", "regretted"),
        ("mind", "minded"),
        ("fault", "faulted"),
    ),
}
INTENSIFIERS = words("very, really, truly, quite, rather, absolutely, remarkably, simply, thoroughly, fairly")
NEGATORS = words("not, hardly, never, far from, anything but, by no means, scarcely, not at all, in no way, not even")

# {adj} agrees with the polarity of the clause, {anti} opposes it. Mild words alone are negated: "not superb" is no
# complaint.
PLAIN = (
    "the {aspect} is {very}{adj}",
    "the {aspect} was {very}{adj}",
    "it is {a_adj} {thing}",
    "this {thing} has {a_adj} {aspect}",
    "I {liked} the {aspect}",
    "I found the {aspect} {very}{adj}",
    "the {aspect} is full of {noun}",
    "everyone {liked} this {thing}",
    "{a_adj} {aspect} and {a_adj} {aspect}",
    "what {a_adj} {thing}",
)
NEGATED = (
    "the {aspect} is {no} {anti}",
    "the {aspect} was {no} {anti}",
    "it is {no} {a_anti} {thing}",
    "I would not call the {aspect} {anti}",
    "nobody could call this {a_anti} {thing}",
    "I did not {antilike} the {aspect}",
    "nothing about the {aspect} is {anti}",
    "the {aspect} has no {antinoun}",
    "there is a complete lack of {antinoun} in the {aspect}",
    "the {thing} is without {antinoun}",
    "you will not find {a_anti} {aspect} here",
    "not one of us {antiliked} the {aspect}",
)
# The clause that decides stands last: {other} has the opposite polarity.
CONTRASTED = (
    "{other}, but {clause}",
    "{other}; however, {clause}",
    "although {other}, {clause}",
    "{other}, yet {clause}",
    "{other}. Still, {clause}",
    "{other} at first, but then {clause}",
    "while {other}, {clause}",
    "I had read that {other}; in truth {clause}",
    "{a_opp} start, {a_adj} end",
    "I expected {a_opp} {thing} and got {a_adj} one",
    "what starts as {a_opp} {thing} ends as {a_adj} one",
    "the first half is {opp}, the second {adj}",
    "others found it {opp}; to me it is {adj}",
    "{opp} {aspect}, {adj} {aspect}",
)
AGREEING = (
    "{same}, and {clause}",
    "{same}; what is more, {clause}",
    "{same}. Indeed, {clause}",
    "since {same}, {clause}",
    "not only that {same}: {clause}",
    "{a_adj} start, {a_adj} end",
    "I expected {a_adj} {thing} and got {a_adj} one",
    "the first half is {adj}, the second {adj}",
    "others found it {adj}; to me it is {adj}",
)


class ReviewWriter:
    """Writes reviews from one random stream; the same stream gives the same reviews."""

    def __init__(self, rng: random.Random):
        self.rng = rng

    def two_class(self, polarity: int) -> str:
        """A review that is positive (+1) or negative (-1); where two clauses oppose, the later one decides."""
        return self._review(polarity, self.rng.choices(("plain", "negated", "contrast", "agree"), (2, 3, 4, 2))[0])

    def plain(self, polarity: int) -> str:
        """A review of one clause without negation, from which the polarity of words can be read off."""
        return self._review(polarity, "plain")

    def four_class(self, name: str) -> str:
        """A review of the class `name`: negative, positive, neutral (facts alone) or mixed (opposed clauses)."""
        if name == "neutral":
            domain = self.rng.choice((FILM, PRODUCT))
            return " ".join(self._fact(template) for template in self.rng.sample(domain.facts, self.rng.choice((2, 3))))
        if name == "mixed":
            return self._review(self.rng.choice((POSITIVE, NEGATIVE)), "contrast")
        polarity = POSITIVE if name == "positive" else NEGATIVE
        return self._review(polarity, self.rng.choices(("plain", "negated", "agree"), (2, 3, 3))[0])

    def _review(self, polarity: int, style: str) -> str:
        domain = self.rng.choice((FILM, PRODUCT))
        if style in ("plain", "negated"):
            text = self._fill(self.rng.choice(PLAIN if style == "plain" else NEGATED), polarity, domain)
        else:
            text = self._fill(self.rng.choice(CONTRASTED if style == "contrast" else AGREEING), polarity, domain)
        sentences = [capitalised(text)]
        if self.rng.random() < 0.4:  # a fact that says nothing of the sentiment, before or after
            sentences.insert(self.rng.choice((0, 1)), self._fact(self.rng.choice(domain.facts)))
        return " ".join(sentences)

    def _clause(self, polarity: int, domain: Domain) -> str:
        return self._fill(self.rng.choice(PLAIN if self.rng.random() < 0.55 else NEGATED), polarity, domain)

    def _fill(self, template: str, polarity: int, domain: Domain) -> str:
        parts: list[str] = []
        for piece in template.replace("}", "{").split("{"):
            slot = len(parts) % 2 == 1  # pieces alternate: text, slot, text, …
            parts.append(self._slot(piece, polarity, domain) if slot else piece)
        return "".join(parts)

    def _slot(self, slot: str, polarity: int, domain: Domain) -> str:  # noqa: PLR0911, PLR0912  one case a slot reads best
        pick = self.rng.choice
        match slot:
            case "aspect":
                return pick(domain.aspects)
            case "thing":
                return pick(domain.things)
            case "very":
                return pick(INTENSIFIERS) + " " if self.rng.random() < 0.4 else ""
            case "no":
                return pick(NEGATORS)
            case "adj" | "opp":
                return self._adjective(polarity if slot == "adj" else -polarity)
            case "a_adj" | "a_opp":
                intense = pick(INTENSIFIERS) + " " if self.rng.random() < 0.3 else ""
                return with_article(intense + self._adjective(polarity if slot == "a_adj" else -polarity))
            case "anti":
                return pick(MILD[-polarity])
            case "a_anti":
                return with_article(pick(MILD[-polarity]))
            case "noun" | "antinoun":
                return pick(NOUNS[polarity if slot == "noun" else -polarity])
            case "liked":
                return pick(LIKE[polarity])[1]
            case "antilike" | "antiliked":
                return pick(LIKE[-polarity])[slot == "antiliked"]
            case "clause" | "same":
                return self._clause(polarity, domain)
            case "other":
                return self._clause(-polarity, domain)
        raise KeyError(f"no slot {slot!r}")

    def _adjective(self, polarity: int) -> str:
        return self.rng.choice(STRONG[polarity] if self.rng.random() < 0.3 else MILD[polarity])

    def _fact(self, template: str) -> str:
        for slot, fillers in FILLERS.items():
            while f"{{{slot}}}" in template:
                template = template.replace(f"{{{slot}}}", self.rng.choice(fillers), 1)
        return template


def with_article(words: str) -> str:
    """`words` after its indefinite article."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def capitalised(text: str) -> str:
    """`text` as a sentence: first letter large, full stop at the end."""
    return text[0].upper() + text[1:] + "."
