"""DEV_KINDS: the kinds of problem that the recipe of the night was tuned on. No vote is cast on them."""

import random

from finetune.problems import Kind, Values, some_names


def _length(rng: random.Random) -> Values:
    big, small, factor = rng.choice(
        (("metres", "centimetres", 100), ("kilometres", "metres", 1000), ("feet", "inches", 12))
    )
    n = rng.randint(3, 19)
    thing = rng.choice(("rope", "bridge", "ribbon", "path", "cable"))
    return dict(thing=thing, n=n, big=big, small=small, answer=n * factor)


def _countdown(rng: random.Random) -> Values:
    n, step = rng.choice((4, 5, 6, 7)), rng.randint(2, 5)
    name = rng.choice(("f", "g", "grow", "climb"))
    return dict(name=name, n=n, before=n - 1, step=step, base=1, answer=1 + n * step)


def _triangle(rng: random.Random) -> Values:
    a, b = rng.choice((35, 45, 50, 62, 70)), rng.choice((38, 55, 64, 75))
    thing = rng.choice(("sail", "roof", "flag", "road sign"))
    return dict(thing=thing, a=a, b=b, answer=180 - a - b)


def _wait(rng: random.Random) -> Values:
    hour, start, length = rng.randint(6, 10), rng.choice((10, 20, 35, 40)), rng.choice((75, 80, 95, 110, 130))
    end = hour * 60 + start + length
    what = rng.choice(("film", "rehearsal", "flight", "lesson", "ceremony"))
    return dict(what=what, clock=f"{hour}:{start}", length=length, hour=hour, answer=f"{end // 60}:{end % 60:02d}")


def _volume(rng: random.Random) -> Values:
    a, b, c = rng.sample(range(3, 13), 3)
    thing = rng.choice(("box", "fish tank", "chest", "block of ice"))
    return dict(thing=thing, a=a, b=b, c=c, answer=a * b * c)


def _atoms(rng: random.Random) -> Values:
    name, formula, element, each = rng.choice(
        (
            ("water", "H2O", "hydrogen", 2),
            ("carbon dioxide", "CO2", "oxygen", 2),
            ("methane", "CH4", "hydrogen", 4),
            ("ammonia", "NH3", "hydrogen", 3),
            ("glucose", "C6H12O6", "carbon", 6),
        )
    )
    n = rng.randint(4, 9)
    return dict(substance=name, formula=formula, element=element, n=n, answer=n * each)


def _backwards(rng: random.Random) -> Values:
    word = rng.choice(("lamp", "stone", "tiger", "bread", "cloud", "piano", "green", "north", "spoon", "water"))
    return dict(word=word, first=word[0], last=word[-1], answer=word[::-1])


def _median(rng: random.Random) -> Values:
    numbers = rng.sample(range(3, 60), 5)
    what = rng.choice(("ages", "prices", "shoe sizes", "points"))
    return dict(numbers=", ".join(map(str, numbers)), a=numbers[0], b=numbers[1], what=what, answer=sorted(numbers)[2])


def _wage(rng: random.Random) -> Values:
    pay, hours, extra = rng.choice((12, 14, 16, 18)), rng.choice((30, 35, 38)), rng.randint(3, 6)
    name = some_names(rng, 1)[0]
    job = rng.choice(("bakery", "library", "garage", "farm"))
    return dict(name=name, job=job, pay=pay, hours=hours, extra=extra, answer=pay * hours + 2 * pay * extra)


def _seats(rng: random.Random) -> Values:
    a, b, c, d = some_names(rng, 4)
    return dict(a=a, b=b, c=c, d=d, answer=c)


DEV_KINDS: tuple[Kind, ...] = (
    Kind(
        "length units",
        (
            "A {thing} is {n} {big} long. How many {small} is that?",
            "We have a {thing} of {n} {big}. What is that in {small}?",
        ),
        (
            "How many {small} are in just one of the {big}?",
            "Will the number for {small} be larger or smaller than {n}?",
        ),
        _length,
    ),
    Kind(
        "recursion",
        (
            (
                "def {name}(n):\n    if n == 0:\n        return {base}\n    return {name}(n - 1) + {step}\n\n"
                "What does {name}({n}) return?"
            ),
            (
                "A function {name} returns {base} for 0, and for any other n it returns {name}(n - 1) + {step}. What "
                "is {name}({n})?"
            ),
        ),
        ("What does {name}(0) return?", "To know {name}({n}), which other value of {name} do you need?"),
        _countdown,
    ),
    Kind(
        "triangle angles",
        (
            "A triangular {thing} has angles of {a} and {b} degrees. How large is the third angle?",
            "Two corners of a {thing} shaped like a triangle measure {a} and {b} degrees. What is left for the third?",
        ),
        ("What do the three angles of any triangle add up to?", "How much do {a} and {b} degrees make together?"),
        _triangle,
        ("angle", "angles", "triangle"),
    ),
    Kind(
        "end time",
        (
            "A {what} begins at {clock} and lasts {length} minutes. When does it end?",
            "If the {what} starts at {clock} and takes {length} minutes, what does the clock show at the end?",
        ),
        ("How many whole hours are in {length} minutes?", "What time is it one hour after {clock}?"),
        _wait,
        ("minutes", "clock"),
    ),
    Kind(
        "volume",
        (
            "A {thing} is {a} cm long, {b} cm wide and {c} cm high. What is its volume?",
            "How many cubic centimetres does a {thing} of {a} by {b} by {c} centimetres hold?",
        ),
        ("How many small cubes cover the bottom of the {thing}?", "How many layers are {c} centimetres high?"),
        _volume,
        ("volume",),
    ),
    Kind(
        "atoms",
        (
            "How many {element} atoms are there in {n} molecules of {substance} ({formula})?",
            "The formula of {substance} is {formula}. How many atoms of {element} do {n} molecules contain?",
        ),
        ("What does the small number in {formula} tell you?", "How many {element} atoms does one molecule have?"),
        _atoms,
        ("molecules", "atoms"),
    ),
    Kind(
        "backwards",
        (
            'A program takes the letters of "{word}" from last to first and joins them. What does it print?',
            'What does print("{word}"[::-1]) show?',
        ),
        ("Which letter of {word} comes out first?", "What is the letter before {last}?"),
        _backwards,
        ("letters", "letter"),
    ),
    Kind(
        "median",
        ("What is the median of these {what}: {numbers}?", "Five {what} are {numbers}. Which one is the median?"),
        ("How would you put {numbers} in order?", "How many {what} are smaller than {a}?"),
        _median,
        ("median",),
        answer_in_text=True,
    ),
    Kind(
        "overtime",
        (
            (
                "{name} earns {pay} euros an hour at the {job} and the double for overtime. What is the pay for "
                "{hours} hours and {extra} hours of overtime?"
            ),
            (
                "At the {job} an hour pays {pay} dollars, an hour of overtime twice that. {name} works {hours} hours "
                "plus {extra} of overtime. How much is earned?"
            ),
        ),
        ("What does {name} earn for one hour of overtime?", "How much are the {hours} normal hours worth?"),
        _wage,
        ("overtime",),
    ),
    Kind(
        "seats",
        (
            (
                "{a}, {b}, {c} and {d} sit in a row. {a} is at the left end, {b} right beside {a}, and {d} at the "
                "right end. Who sits beside {d}?"
            ),
            (
                "Four friends queue: {a} is first, {b} stands behind {a}, {d} is last, and {c} is somewhere. Who is "
                "right in front of {d}?"
            ),
        ),
        ("Which places are taken by {a} and {d}?", "Where is {b}, if {a} is at the beginning?"),
        _seats,
        answer_in_text=True,
    ),
)
