"""TEST_KINDS: the kinds of problem that the reported table is measured on. No vote, and no tuning, uses them."""

import math
import random

from finetune.problems import Kind, Values, listed, some_names

ROMAN = ((50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))


def _tiles(rng: random.Random) -> Values:
    long, wide = rng.randint(5, 14), rng.randint(4, 9)
    room = rng.choice(("kitchen", "terrace", "bathroom", "corridor", "stage"))
    return dict(room=room, long=long, wide=wide, answer=long * wide)


def _tank(rng: random.Random) -> Values:
    rate, minutes = rng.choice((6, 8, 12, 15)), rng.randint(7, 25)
    vessel = rng.choice(("bathtub", "barrel", "pool", "water tank", "aquarium"))
    return dict(vessel=vessel, litres=rate * minutes, rate=rate, answer=minutes)


def _guess(rng: random.Random) -> Values:
    top = rng.choice((15, 31, 63, 127))
    name = some_names(rng, 1)[0]
    return dict(name=name, top=top, middle=(top + 1) // 2, answer=(top + 1).bit_length() - 1)


def _roman(rng: random.Random) -> Values:
    n = rng.choice((14, 19, 24, 27, 36, 39, 42, 46, 58, 63, 69))
    left, answer = n, ""
    for value, letters in ROMAN:
        answer += letters * (left // value)
        left %= value
    where = rng.choice(("clock", "gate", "old book", "statue"))
    return dict(n=n, where=where, answer=answer)


def _factorial(rng: random.Random) -> Values:
    n = rng.choice((4, 5, 6))
    name = rng.choice(("fact", "h", "product", "mystery"))
    return dict(name=name, n=n, before=n - 1, answer=math.factorial(n))


def _balance(rng: random.Random) -> Values:
    left, right, ask, answer = rng.choice(
        (
            ("H2 + O2", "H2O", "H2O", "2H2 + O2 -> 2H2O"),
            ("N2 + H2", "NH3", "NH3", "N2 + 3H2 -> 2NH3"),
            ("Mg + O2", "MgO", "MgO", "2Mg + O2 -> 2MgO"),
            ("Na + Cl2", "NaCl", "NaCl", "2Na + Cl2 -> 2NaCl"),
            ("Al + O2", "Al2O3", "Al2O3", "4Al + 3O2 -> 2Al2O3"),
            ("K + H2O", "KOH + H2", "KOH", "2K + 2H2O -> 2KOH + H2"),
            ("CH4 + O2", "CO2 + H2O", "CO2", "CH4 + 2O2 -> CO2 + 2H2O"),
            ("Fe + Cl2", "FeCl3", "FeCl3", "2Fe + 3Cl2 -> 2FeCl3"),
        )
    )
    return dict(left=left, right=right, ask=ask, answer=answer, also=answer.replace("->", "="))


def _density(rng: random.Random) -> Values:
    density, volume = rng.choice((3, 8, 11, 19)), rng.randint(12, 40)
    thing = rng.choice(("stone", "metal ball", "statue", "ring", "cube"))
    return dict(thing=thing, mass=density * volume, volume=volume, answer=density)


def _dice(rng: random.Random) -> Values:
    total, ways = rng.choice(((5, 4), (6, 5), (7, 6), (8, 5), (9, 4)))
    game = rng.choice(("board game", "bet", "card and dice game", "maths club"))
    one, two = rng.sample(("red", "blue", "white", "black"), 2)
    also = f"{ways} out of 36|{ways} in 36|1/6" if ways == 6 else f"{ways} out of 36|{ways} in 36|1/9"
    return dict(one=one, two=two, total=total, game=game, answer=f"{ways}/36", also=also)


def _alphabet(rng: random.Random) -> Values:
    words = rng.choice(
        (
            ("planet", "plant", "plane", "place"),
            ("meadow", "meal", "measure", "mean"),
            ("stream", "string", "street", "stripe"),
            ("carpet", "carrot", "carbon", "cargo"),
            ("bridge", "brick", "bright", "bring"),
            ("forest", "fork", "form", "fort"),
            ("shell", "shelf", "shed", "sheep"),
            ("grain", "grape", "grass", "gravel"),
        )
    )
    shuffled = rng.sample(words, 4)
    name = some_names(rng, 1)[0]
    return dict(name=name, words=listed(shuffled), a=shuffled[0], b=shuffled[1], answer=listed(sorted(words)))


def _homophone(rng: random.Random) -> Values:
    sentence, one, two, answer = rng.choice(
        (
            ("The dog wagged ... tail", "its", "it's", "its"),
            ("... going to rain tonight", "Its", "It's", "It's"),
            ("The children put on ... coats", "their", "there", "their"),
            ("We ate a ... of cake", "peace", "piece", "piece"),
            ("The queen sat on the ...", "throne", "thrown", "throne"),
            ("He could not ... the bell", "hear", "here", "hear"),
            ("She ... the ball over the wall", "through", "threw", "threw"),
            ("The ... is sunny today", "weather", "whether", "weather"),
            ("I have ... many books to carry", "to", "too", "too"),
            ("The ship will ... tomorrow", "sail", "sale", "sail"),
        )
    )
    return dict(sentence=sentence, one=one, two=two, answer=answer)


def _timezone(rng: random.Random) -> Values:
    a, b = rng.sample(("Lisbon", "Hanoi", "Nairobi", "Bogota", "Perth", "Athens", "Delhi"), 2)
    hour, ahead = rng.randint(1, 6), rng.randint(2, 6)
    return dict(a=a, b=b, hour=hour, ahead=ahead, answer=hour + ahead)


def _currency(rng: random.Random) -> Values:
    rate, amount = rng.choice((4, 6, 9, 11, 20)), rng.choice((15, 25, 30, 45, 70))
    a, b = rng.choice((("euros", "lira"), ("dollars", "pesos"), ("francs", "krona"), ("pounds", "rand")))
    return dict(name=some_names(rng, 1)[0], a=a, b=b, rate=rate, amount=amount, answer=rate * amount)


def _divisor(rng: random.Random) -> Values:
    common, (p, q) = rng.choice((4, 6, 8, 9, 12)), rng.choice(((2, 3), (3, 4), (3, 5), (4, 5), (5, 7)))
    one, two = rng.sample(("tulips", "roses", "daisies", "lilies", "violets"), 2)
    return dict(one=one, two=two, m=common * p, n=common * q, answer=common)


def _handshakes(rng: random.Random) -> Values:
    n = rng.randint(5, 12)
    who = rng.choice(("guests", "chess players", "neighbours", "teams"))
    what = rng.choice(("party", "meeting", "tournament", "reunion"))
    return dict(n=n, who=who, what=what, answer=n * (n - 1) // 2)


def _truth(rng: random.Random) -> Values:
    a, b = some_names(rng, 2)
    thing = rng.choice(("vase", "window", "plate", "toy"))
    return dict(a=a, b=b, thing=thing, answer=b)


def _halving(rng: random.Random) -> Values:
    power, odd = rng.choice((4, 5, 6, 7)), rng.choice((1, 1, 3))
    var = rng.choice(("n", "size", "candles", "cells"))
    steps = power if odd == 1 else power + 1
    return dict(var=var, start=odd * 2**power, answer=steps)


def _beads(rng: random.Random) -> Values:
    a, b, c = rng.sample(("red", "green", "blue", "white", "black", "yellow"), 3)
    which = rng.randint(20, 50)
    thing = rng.choice(("beads on a string", "flags along a street", "tiles along a wall"))
    return dict(a=a, b=b, c=c, thing=thing, which=which, answer=(c, a, b)[which % 3])


def _thermometer(rng: random.Random) -> Values:
    low, high = rng.randint(3, 14), rng.randint(5, 18)
    place = rng.choice(("Oulu", "the hut", "Ushuaia", "the valley", "Harbin"))
    return dict(place=place, low=low, high=high, answer=low + high)


TEST_KINDS: tuple[Kind, ...] = (
    Kind(
        "tiles",
        (
            (
                "The floor of a {room} is {long} metres long and {wide} metres wide. How many square metres of tiles "
                "cover it?"
            ),
            "What area does a {room} of {long} m by {wide} m have?",
        ),
        ("How many square metres are in one row of {long} metres?",),
        _tiles,
        ("area", "floor", "tiles"),
    ),
    Kind(
        "filling",
        (
            "A {vessel} holds {litres} litres. The tap gives {rate} litres a minute. How long does it take to fill?",
            (
                "Water runs into an empty {vessel} at {rate} litres per minute. After how many minutes are {litres} "
                "litres in it?"
            ),
        ),
        ("How much water is in the {vessel} after one minute?",),
        _tank,
        ("tap", "water"),
    ),
    Kind(
        "binary search",
        (
            (
                "{name} thinks of a number from 1 to {top}. You always ask about the middle and hear higher or "
                "lower. How many guesses do you need at most?"
            ),
            "A sorted list has {top} entries. How many entries does binary search look at in the worst case?",
        ),
        ("How many numbers are left after asking about {middle}?",),
        _guess,
        ("middle", "list", "guess", "guesses", "entries"),
    ),
    Kind(
        "roman",
        (
            "The number {n} is to be carved over a {where} in Roman numerals. What has to be carved?",
            "How is {n} written in Roman numerals?",
        ),
        ("Which Roman letters stand for the tens of {n}?",),
        _roman,
        ("Roman", "numerals"),
    ),
    Kind(
        "factorial",
        (
            "def {name}(n):\n    return 1 if n == 1 else n * {name}(n - 1)\n\nWhat is {name}({n})?",
            (
                "A function calls itself: {name}(1) is 1, and {name}(n) is n times {name}(n - 1). What is the value "
                "of {name}({n})?"
            ),
        ),
        ("Which value do you need before you can find {name}({n})?",),
        _factorial,
        ("function",),
    ),
    Kind(
        "balance",
        (
            "Balance this equation: {left} -> {right}",
            "Which numbers must stand in front so that {left} gives {right} with no atom lost?",
        ),
        ("How many atoms of each element are in {left}?",),
        _balance,
        ("equation", "atom", "atoms"),
    ),
    Kind(
        "density",
        (
            "A {thing} weighs {mass} grams and takes up {volume} cubic centimetres. What is its density?",
            "How many grams does one cubic centimetre of a {thing} weigh, when {volume} of them weigh {mass} grams?",
        ),
        ("What does density compare?",),
        _density,
        ("density", "grams"),
    ),
    Kind(
        "two dice",
        (
            "In a {game} a {one} and a {two} die are thrown. How likely is a sum of {total}?",
            "You throw two dice, one {one} and one {two}. What is the probability that they show {total} together?",
        ),
        ("Which throws of the {one} and the {two} die make {total}?",),
        _dice,
        ("die", "dice", "sum", "probability"),
    ),
    Kind(
        "alphabet",
        (
            "{name} sorts word cards by the alphabet: {words}. In which order do they end up?",
            "Put these words in the order of a dictionary: {words}.",
        ),
        ("At which letter do {a} and {b} begin to differ?",),
        _alphabet,
        ("alphabet", "letter", "letters", "words", "dictionary", "order"),
    ),
    Kind(
        "homophones",
        (
            'Which word is right: "{sentence}"? {one} or {two}?',
            'Choose between {one} and {two}: "{sentence}."',
        ),
        ("What does {one} mean?",),
        _homophone,
        ("sentence",),
        answer_in_text=True,
    ),
    Kind(
        "time zones",
        (
            "The clocks in {b} are {ahead} hours ahead of {a}. It is {hour} o'clock in {a}. What time is it in {b}?",
            "When it is {hour} o'clock in {a}, what do the clocks say in {b}, which is {ahead} hours ahead?",
        ),
        ("Is it later in {a} or in {b}?",),
        _timezone,
        ("clocks", "clock"),
    ),
    Kind(
        "currency",
        (
            "{name} changes {amount} {a} into {b}. One of the {a} gives {rate} {b}. How many {b} is that?",
            "For 1 of the {a} you get {rate} {b}. How many {b} do you get for {amount} {a}?",
        ),
        ("How many {b} would 2 {a} give?",),
        _currency,
    ),
    Kind(
        "common divisor",
        (
            (
                "A florist has {m} {one} and {n} {two} and wants as many equal bunches as possible with nothing "
                "left. How many bunches?"
            ),
            "What is the largest number of identical bouquets from {m} {one} and {n} {two}, using them all?",
        ),
        ("Which numbers divide {m}?",),
        _divisor,
        ("bunches", "bouquets"),
    ),
    Kind(
        "handshakes",
        (
            "At a {what} {n} {who} each shake hands with every other once. How many handshakes are there?",
            "{n} {who} come to a {what} and each pair shakes hands one time. How many times are hands shaken?",
        ),
        ("How many hands does the first of the {n} {who} shake?",),
        _handshakes,
        ("handshakes", "hands", "pair"),
    ),
    Kind(
        "liar",
        (
            (
                '{a} always lies, {b} always tells the truth. One broke the {thing}. {a} says: "{b} did not do it." '
                "Who broke the {thing}?"
            ),
            'Somebody broke a {thing}: {a} or {b}. {a}, who never tells the truth, says "I broke it." Who was it?',
        ),
        ("What follows when {a} says something?",),
        _truth,
        ("truth", "lies"),
        answer_in_text=True,
    ),
    Kind(
        "halving loop",
        (
            (
                "{var} = {start}\nsteps = 0\nwhile {var} > 1:\n    {var} = {var} // 2\n    steps = steps + 1\n"
                "print(steps)\n\nWhat does this print?"
            ),
            (
                "A loop halves {var} (rounding down) until it is 1. It begins at {start}. How many times does the "
                "loop run?"
            ),
        ),
        ("What is {var} after the first round?",),
        _halving,
        ("loop", "steps"),
    ),
    Kind(
        "pattern of colours",
        (
            "There are {thing}: {a}, {b}, {c}, {a}, {b}, {c} and so on. What colour is number {which}?",
            "The colours {a}, {b}, {c} repeat for ever on {thing}. Which colour comes at place {which}?",
        ),
        ("Which colour has number 3?",),
        _beads,
        ("colour", "colours", "pattern"),
        answer_in_text=True,
    ),
    Kind(
        "thermometer",
        (
            (
                "In {place} it was {low} degrees below zero in the morning and {high} above zero at noon. By how "
                "much did it get warmer?"
            ),
            "The thermometer in {place} climbs from -{low} to {high} degrees. How large is the rise?",
        ),
        ("How many degrees is it from -{low} to zero?",),
        _thermometer,
        ("degrees", "zero", "temperature", "thermometer"),
    ),
)
