"""Algorithms, patterns, chance, science, language and logic: the second half of VOTED_KINDS."""

import random

from finetune.problems import Kind, Values, listed, some_names

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _weekday(rng: random.Random) -> Values:
    start, later = rng.randrange(7), rng.choice((9, 10, 11, 12, 16, 17, 18, 19, 23, 24, 25))
    event = rng.choice(("concert", "exam", "market", "dentist visit", "football match", "school trip"))
    return dict(day=DAYS[start], later=later, event=event, answer=DAYS[(start + later) % 7])


def _sequence(rng: random.Random) -> Values:
    start, step, grow = rng.randint(1, 9), rng.randint(2, 9), rng.choice((0, 0, 1, 2))
    terms = [start]
    for i in range(5):
        terms.append(terms[-1] + step + i * grow)
    return dict(terms=listed(terms[:5]), a=terms[0], b=terms[1], c=terms[3], d=terms[4], answer=terms[5])


def _loop_sum(rng: random.Random) -> Values:
    start, times, step = rng.randint(1, 9), rng.randint(4, 7), rng.randint(3, 8)
    var = rng.choice(("total", "count", "x", "coins", "score"))
    return dict(var=var, start=start, times=times, step=step, answer=start + times * step)


def _bubble(rng: random.Random) -> Values:
    numbers = rng.sample(range(1, 30), 4)
    after = list(numbers)
    for i in range(3):
        if after[i] > after[i + 1]:
            after[i], after[i + 1] = after[i + 1], after[i]
    return dict(numbers=listed(numbers), a=numbers[0], b=numbers[1], c=numbers[2], answer=listed(after))


def _plural(rng: random.Random) -> Values:
    word, answer = rng.choice(
        (
            ("leaf", "leaves"),
            ("city", "cities"),
            ("mouse", "mice"),
            ("knife", "knives"),
            ("child", "children"),
            ("tooth", "teeth"),
            ("potato", "potatoes"),
            ("goose", "geese"),
            ("wolf", "wolves"),
            ("berry", "berries"),
            ("foot", "feet"),
            ("box", "boxes"),
            ("shelf", "shelves"),
            ("puppy", "puppies"),
        )
    )
    n = rng.randint(3, 40)
    return dict(word=word, n=n, name=some_names(rng, 1)[0], answer=answer)


def _work(rng: random.Random) -> Values:
    force, metres = rng.choice((20, 30, 40, 50, 60)), rng.randint(3, 9)
    load = rng.choice(("crate", "sledge", "trolley", "wheelbarrow", "piano"))
    name = some_names(rng, 1)[0]
    return dict(name=name, load=load, force=force, metres=metres, answer=force * metres)


def _turns(rng: random.Random) -> Values:
    compass = ("north", "east", "south", "west")
    facing, turns = (
        rng.randrange(4),
        rng.choice((("right", "right", "left"), ("left", "left", "left"), ("left", "right", "left"))),
    )
    turn = sum(1 if word == "right" else -1 for word in turns)
    name = some_names(rng, 1)[0]
    values = dict(name=name, facing=compass[facing], t1=turns[0], t2=turns[1], t3=turns[2])
    return dict(**values, answer=compass[(facing + turn) % 4])


def _balls(rng: random.Random) -> Values:
    a, b = rng.sample((3, 4, 5, 7, 8), 2)
    one, two = rng.sample(("red", "blue", "green", "yellow", "white"), 2)
    what = rng.choice(("balls", "beads", "socks", "counters"))
    also = f"{a} out of {a + b}|{a} in {a + b}|{a} over {a + b}"
    return dict(a=a, b=b, one=one, two=two, what=what, answer=f"{a}/{a + b}", also=also)


def _stack(rng: random.Random) -> Values:
    a, b, c, d = rng.sample(("cup", "map", "key", "hat", "pen", "box", "shoe", "drum"), 4)
    return dict(a=a, b=b, c=c, d=d, answer=a)


def _past(rng: random.Random) -> Values:
    verb, answer = rng.choice(
        (
            ("write", "wrote"),
            ("bring", "brought"),
            ("swim", "swam"),
            ("teach", "taught"),
            ("fly", "flew"),
            ("catch", "caught"),
            ("begin", "began"),
            ("grow", "grew"),
            ("choose", "chose"),
            ("drive", "drove"),
        )
    )
    when = rng.choice(("yesterday", "last week", "two days ago", "last summer"))
    return dict(verb=verb, when=when, name=some_names(rng, 1)[0], answer=answer)


def _heights(rng: random.Random) -> Values:
    a, b, c = some_names(rng, 3)
    more, most = rng.choice(
        (("taller", "tallest"), ("faster", "fastest"), ("older", "oldest"), ("stronger", "strongest"))
    )
    return dict(a=a, b=b, c=c, more=more, most=most, answer=b)


THINKING_KINDS: tuple[Kind, ...] = (
    Kind(
        "weekday",
        (
            "Today is {day}. The {event} is in {later} days. On which day of the week is it?",
            "What day will it be {later} days after a {day}?",
            "It is {day} now and there are {later} days until the {event}. Which weekday will that be?",
        ),
        (
            "Starting on {day}, which day is it after exactly one week?",
            "How many whole weeks fit into {later} days?",
            "If you take out the full weeks from {later} days, how many days are left over?",
            "What day comes right after {day}?",
            "Seven days after {day}, where are you in the week?",
        ),
        _weekday,
        ("week",),
    ),
    Kind(
        "sequence",
        (
            "Which number comes next: {terms}?",
            "A row of numbers begins {terms}. How does it go on?",
            "Find the number that follows in the pattern {terms}, ...",
        ),
        (
            "What do you have to do to get from {a} to {b}?",
            "How big is the step from {c} to {d}?",
            "Is the jump from {a} to {b} as big as the jump from {c} to {d}?",
            "Look at {a} and {b} first: what has changed?",
            "Does the pattern {terms} grow by the same amount every time?",
        ),
        _sequence,
        ("pattern",),
    ),
    Kind(
        "loop sum",
        (
            (
                "A program sets {var} = {start} and then repeats {var} = {var} + {step} exactly {times} times. What "
                "does print({var}) show?"
            ),
            "What is printed?\n{var} = {start}\nfor i in range({times}):\n    {var} = {var} + {step}\nprint({var})",
            (
                "{var} begins at {start}. A loop runs {times} times and adds {step} to {var} each time. What is "
                "{var} at the end?"
            ),
        ),
        (
            "What is the value of {var} after the loop has run once?",
            "How many times is {step} added to {var}?",
            "Before the loop begins, what is {var}?",
            "Can you make a little table with {var} after each of the {times} rounds?",
            "Which line changes {var}, and by how much?",
        ),
        _loop_sum,
        ("loop",),
    ),
    Kind(
        "bubble pass",
        (
            (
                "Bubble sort compares neighbours from left to right and swaps them when the left one is larger. What "
                "is the list {numbers} after one pass?"
            ),
            "Do one pass of bubble sort on {numbers}. What does the list look like then?",
            (
                "We walk once through {numbers} and swap each pair of neighbours that is in the wrong order. Which "
                "list results?"
            ),
        ),
        (
            "Which two numbers do you compare first in {numbers}?",
            "Are {a} and {b} in the right order?",
            "After you have looked at {a} and {b}, which pair comes next?",
            "When {b} meets {c}, should they change places?",
            "Which number of the list {numbers} do you expect to end up last?",
        ),
        _bubble,
        ("list", "neighbours", "swap"),
    ),
    Kind(
        "plural",
        (
            "{name} has one {word}. How do you write the word when there are {n} of them?",
            "What is the plural of {word}?",
            "Complete the sentence: one {word}, {n} ... Which word is missing?",
        ),
        (
            "Say one {word} and then many of them aloud: what changes in the word?",
            "Which letter does {word} end with, and does that matter for its plural?",
            "Do you know another word that looks like {word}, and its plural?",
            "Does {word} simply take an s, or does something else happen?",
            "If you saw {n} of them, what would you call them instead of {word}?",
        ),
        _plural,
        ("plural",),
    ),
    Kind(
        "work",
        (
            "{name} pushes a {load} with a force of {force} newtons over {metres} metres. How much work is done?",
            "How many joules does it take to move a {load} {metres} m against a force of {force} N?",
            "A {load} is pulled {metres} metres with {force} newtons. Find the work.",
        ),
        (
            "What does the force of {force} newtons do while the {load} moves?",
            "How much work would it be if the {load} moved only 1 metre?",
            "Which two numbers decide how much work it is to move the {load}?",
            "Would moving the {load} twice as far as {metres} metres be more work?",
            "How are force, distance and work connected, for this {load}?",
        ),
        _work,
        ("force", "work"),
    ),
    Kind(
        "turns",
        (
            "{name} is facing {facing}, turns {t1}, then {t2}, then {t3}. Which way does {name} face now?",
            "You look {facing}. You turn {t1}, {t2} and {t3}, a quarter turn each. Which direction do you look in?",
            "A robot stands facing {facing} and makes the quarter turns {t1}, {t2}, {t3}. Where does it face?",
        ),
        (
            "Facing {facing}, which direction is on your {t1}?",
            "After the first turn to the {t1}, where does one look?",
            "Could you draw a compass and mark {facing} on it before you turn?",
            "Which of the turns {t1}, {t2}, {t3} cancel each other?",
            "If you stood facing {facing} yourself, what would you see after turning {t1}?",
        ),
        _turns,
        ("compass", "turn", "direction"),
    ),
    Kind(
        "balls",
        (
            "A bag holds {a} {one} and {b} {two} {what}. What is the chance of drawing a {one} one?",
            (
                "There are {a} {one} {what} and {b} {two} {what} in a box. You take one without looking. How likely "
                "is {one}?"
            ),
            "Out of {a} {one} and {b} {two} {what} one is picked blindly. What is the probability that it is {one}?",
        ),
        (
            "How many {what} are there in all, {one} and {two} together?",
            "Which of the {what} would you be glad to draw, if you want {one}?",
            "Is {one} more likely than {two}, and how can you tell from {a} and {b}?",
            "If every one of the {what} is equally likely, how many ways are there to draw a {one} one?",
            "What would the chance be if all the {what} were {one}?",
        ),
        _balls,
        ("chance", "probability"),
    ),
    Kind(
        "stack",
        (
            "On an empty stack we push {a}, push {b}, pop, push {c}, push {d}, pop, pop. What is on top?",
            (
                "You pile up things: put down the {a}, put the {b} on it, take the top one off, put on the {c}, then "
                "the {d}, and take the top one off twice. What lies on top?"
            ),
        ),
        (
            "After the {a} and the {b} are on the pile, which one comes off first?",
            "What is left when the {b} has been taken off?",
            "When the {d} goes on, what lies right under it?",
            "Could you draw the pile after each step, beginning with the {a}?",
            "Taking off the top twice at the end: is the {d} or the {c} the first to go?",
        ),
        _stack,
        ("stack", "pile", "top"),
        answer_in_text=True,
    ),
    Kind(
        "past tense",
        (
            "Put the verb in the right form: {name} ({verb}) every day, and {when} {name} ... too.",
            "What is the past tense of {verb}?",
            'Which form of {verb} fits: "{when}, {name} ___ for an hour"?',
        ),
        (
            "If it happened {when} and not now, does {verb} stay as it is?",
            "Is {verb} a verb that just takes -ed, or does it change inside?",
            "How would you say the sentence if you had done it {when}: would {verb} sound right?",
            "Do you know a verb that rhymes with {verb}, and how does it change?",
            "What does the time of the sentence tell you about the form of {verb}?",
        ),
        _past,
        ("past", "verb"),
    ),
    Kind(
        "order of three",
        (
            "{a} is {more} than {c}. {b} is {more} than {a}. Who is the {most}?",
            "{b} is {more} than {a}, and {a} is {more} than {c}. Which of the three is the {most}?",
            "Of three friends, {a} is {more} than {c} but {b} is {more} than {a}. Who is the {most} of them?",
        ),
        (
            "Between {a} and {c}, who is {more}?",
            "What does the sentence about {b} tell you?",
            "Could you put {a} and {c} on a line first, and then find a place for {b}?",
            "Is there anybody who is {more} than {a}?",
            "Can {c} be the {most}, and how do you know?",
        ),
        _heights,
        answer_in_text=True,
    ),
)
