"""Everyday sums: the first half of VOTED_KINDS."""

import random

from finetune.problems import Kind, Values, listed, some_names


def _shopping(rng: random.Random) -> Values:
    n, price, extra = rng.randint(3, 9), rng.randint(2, 12), rng.randint(11, 35)
    things = rng.choice(("notebooks", "apples", "stamps", "candles", "brushes", "lemons", "postcards", "batteries"))
    other = rng.choice(("lamp", "kettle", "scarf", "basket", "clock", "puzzle"))
    money = rng.choice(("euros", "dollars", "crowns", "pounds"))
    name = some_names(rng, 1)[0]
    return dict(
        name=name, n=n, things=things, price=price, other=other, extra=extra, money=money, answer=n * price + extra
    )


def _change(rng: random.Random) -> Values:
    first, second = rng.randint(2, 9), rng.randint(3, 9)
    note = rng.choice((20, 50, 100))
    one, two = rng.sample(("sandwich", "juice", "magazine", "muffin", "umbrella", "ticket", "soap"), 2)
    name = some_names(rng, 1)[0]
    return dict(name=name, one=one, first=first, two=two, second=second, note=note, answer=note - first - second)


def _travel(rng: random.Random) -> Values:
    speed, hours = rng.choice((12, 15, 45, 60, 70, 80, 90)), rng.randint(2, 7)
    who = rng.choice(("bus", "train", "truck", "cyclist", "ferry", "tractor"))
    town = rng.choice(("Lund", "Porto", "Ghent", "Pune", "Lagos", "Cusco", "Izmir"))
    return dict(who=who, speed=speed, hours=hours, town=town, answer=speed * hours)


def _ages(rng: random.Random) -> Values:
    a, b = some_names(rng, 2)
    age, older, years = rng.randint(5, 15), rng.randint(2, 9), rng.randint(3, 9)
    return dict(a=a, b=b, age=age, older=older, years=years, answer=age + older + years)


def _fraction(rng: random.Random) -> Values:
    part, each = rng.choice((3, 4, 5, 6, 8)), rng.randint(4, 12)
    things = rng.choice(("marbles", "tiles", "seeds", "pages", "eggs", "tickets", "photos"))
    name = some_names(rng, 1)[0]
    return dict(name=name, whole=part * each, part=part, things=things, answer=part * each - each)


def _discount(rng: random.Random) -> Values:
    price, percent = rng.choice((40, 60, 80, 120, 200, 300)), rng.choice((5, 10, 15, 20, 25, 30))
    thing = rng.choice(("jacket", "tent", "bicycle helmet", "radio", "suitcase", "desk"))
    return dict(thing=thing, price=price, percent=percent, answer=price - price * percent // 100)


def _groups(rng: random.Random) -> Values:
    size, groups = rng.randint(4, 9), rng.randint(5, 14)
    people = rng.choice(("pupils", "players", "tourists", "singers", "scouts"))
    vehicle = rng.choice(("boats", "vans", "tables", "cabins", "rows"))
    return dict(people=people, total=size * groups, vehicle=vehicle, size=size, answer=groups)


def _average(rng: random.Random) -> Values:
    mean = rng.randint(11, 30)
    shift, other = rng.randint(1, 5), rng.randint(6, 9)
    scores = [mean - shift, mean + other, mean + shift, mean - other]
    rng.shuffle(scores)
    what = rng.choice(("quiz scores", "daily temperatures", "parcel weights", "reading times"))
    return dict(scores=listed(scores), first=scores[0], last=scores[3], what=what, answer=mean)


def _perimeter(rng: random.Random) -> Values:
    long, wide = rng.randint(11, 30), rng.randint(4, 10)
    place = rng.choice(("garden", "sheep pen", "playground", "pond", "vegetable bed"))
    name = some_names(rng, 1)[0]
    return dict(name=name, place=place, long=long, wide=wide, answer=2 * (long + wide))


def _recipe(rng: random.Random) -> Values:
    people, factor, grams = rng.choice((2, 4)), rng.randint(3, 5), rng.choice((50, 75, 120, 150))
    food = rng.choice(("rice", "flour", "lentils", "oats", "sugar"))
    dish = rng.choice(("soup", "pancakes", "pudding", "bread", "salad"))
    return dict(dish=dish, food=food, grams=grams, people=people, guests=people * factor, answer=grams * factor)


def _remainder(rng: random.Random) -> Values:
    size, left = rng.randint(7, 12), rng.randint(4, 6)
    total = size * rng.randint(5, 11) + left
    things = rng.choice(("eggs", "pencils", "bottles", "cookies", "light bulbs"))
    return dict(things=things, total=total, size=size, answer=left)


SUM_KINDS: tuple[Kind, ...] = (
    Kind(
        "shopping total",
        (
            (
                "{name} buys {n} {things} at {price} {money} each and a {other} for {extra} {money}. How much is "
                "that in all?"
            ),
            (
                "A shop sells {things} for {price} {money} apiece. {name} takes {n} of them and a {other} that costs "
                "{extra} {money}. What does {name} pay?"
            ),
            "What is the total bill for {n} {things} ({price} {money} each) plus one {other} at {extra} {money}?",
        ),
        (
            "How much do the {n} {things} cost by themselves, before you think about the {other}?",
            "If one of the {things} costs {price} {money}, what would {n} of them cost?",
            "Which part of the bill comes from the {things}, and which part from the {other}?",
            "Beside the {other} at {extra} {money}, what else has to be paid for?",
            (
                "Before adding anything up: what does the price of {price} {money} stand for, one of the {things} or "
                "all {n}?"
            ),
            "Can you write down what each thing on the bill costs, beginning with the {n} {things}?",
        ),
        _shopping,
    ),
    Kind(
        "change",
        (
            (
                "{name} pays for a {one} at {first} euros and a {two} at {second} euros with a {note} euro note. How "
                "much change comes back?"
            ),
            (
                "You buy a {one} ({first} pounds) and a {two} ({second} pounds) and hand over {note} pounds. How "
                "much do you get back?"
            ),
            "A {one} costs {first} dollars, a {two} {second} dollars. What change is left from {note} dollars?",
        ),
        (
            "What do the {one} and the {two} cost together?",
            "If only the {one} were bought, what would be left of the {note}?",
            "How could you find out how much of the {note} has been spent?",
            "You have {note} to begin with: what happens to it after paying {first} for the {one}?",
            "Is it easier to take away {first} and {second} one after the other, or to add them first?",
        ),
        _change,
        ("change",),
    ),
    Kind(
        "travel",
        (
            "A {who} moves at {speed} kilometres an hour. How far does it get in {hours} hours?",
            "The {who} to {town} goes {speed} km/h and needs {hours} hours. How long is the way?",
            "Going steadily at {speed} km per hour, what distance does a {who} cover in {hours} hours?",
        ),
        (
            "How far does the {who} get in just one hour?",
            "What does {speed} kilometres an hour tell you about the first hour of the {who}?",
            "After 2 hours at {speed} kilometres an hour, where would the {who} be?",
            "If the {who} is on its way for {hours} hours, how many times does it cover its distance for one hour?",
            "In your own words, what does the number {speed} mean here?",
        ),
        _travel,
        ("distance", "hour"),
    ),
    Kind(
        "ages",
        (
            "{a} is {age} years old. {b} is {older} years older than {a}. How old will {b} be in {years} years?",
            "{b} was born {older} years before {a}, who is {age} now. What is the age of {b} {years} years from now?",
            "If {a} is {age} and {b} is {older} years older, how old is {b} after {years} more years?",
        ),
        (
            "How old is {b} today, if {a} is {age}?",
            "Who was born first, {a} or {b}, and by how many years?",
            "What will change for {b} when {years} years have gone by?",
            "{a} is {age} now. How could you get from there to the age of {b}?",
            "Which of the numbers {age}, {older} and {years} do you need first, to know how old {b} is now?",
        ),
        _ages,
    ),
    Kind(
        "fraction",
        (
            "{name} has {whole} {things} and gives away 1/{part} of them. How many are left?",
            "One in every {part} of the {whole} {things} is broken. How many {things} are still good?",
            "Out of {whole} {things}, {name} loses 1/{part}. How many {things} remain?",
        ),
        (
            "If you put the {whole} {things} into {part} equal heaps, how many are in one heap?",
            "What does 1/{part} mean when you have {whole} {things}?",
            "How many of the {part} equal parts are gone, and how many stay?",
            "Could you draw the {whole} {things} and circle 1/{part} of them?",
            "How many {things} is 1/{part} of {whole}?",
        ),
        _fraction,
    ),
    Kind(
        "discount",
        (
            "A {thing} costs {price} euros. In the sale it is {percent}% off. What is the sale price?",
            "The price of a {thing} is {price} dollars, less {percent} percent. How much does one pay?",
            "With a discount of {percent}%, what does a {thing} of {price} pounds cost?",
        ),
        (
            "How much would 10% of {price} be?",
            "What does {percent}% off mean for the price of the {thing}?",
            "If the {thing} were 100 instead of {price}, how much would come off at {percent}%?",
            "Will the {thing} cost more or less than {price} after the discount, and why?",
            "Which amount do you take away from {price}?",
        ),
        _discount,
        ("discount", "price"),
    ),
    Kind(
        "groups",
        (
            "{total} {people} are spread over {vehicle}, {size} in each. How many {vehicle} are needed?",
            "There are {total} {people} and {size} fit into each of the {vehicle}. How many {vehicle} does it take?",
            "Each of the {vehicle} takes {size} {people}. How many {vehicle} do {total} {people} fill?",
        ),
        (
            "How many {people} find a place if you have just 2 of the {vehicle}?",
            "When the first {size} {people} have a place, how many of the {total} are still waiting?",
            "What do you know about each one of the {vehicle}?",
            "How often does {size} fit into {total}, do you think more than 3 times?",
            "Would you multiply or divide {total} by {size}, and what makes you think so?",
        ),
        _groups,
    ),
    Kind(
        "average",
        (
            "Four {what} are {scores}. What is their mean?",
            "Find the average of these {what}: {scores}.",
            "{scores}: these are four {what}. How large is their average?",
        ),
        (
            "What do you get when you add {first} and {last} and the other two?",
            "How many {what} are there in the list {scores}?",
            "If all four {what} were equal, how would you share out their sum?",
            "Which of the {what} is the smallest, and which is the largest?",
            "Do you expect the average to lie above or below {first}?",
        ),
        _average,
        ("average", "mean"),
    ),
    Kind(
        "perimeter",
        (
            (
                "{name} wants a fence round a {place} that is {long} metres long and {wide} metres wide. How many "
                "metres of fence are needed?"
            ),
            "A rectangular {place} measures {long} m by {wide} m. How far is it all the way round?",
            "What is the perimeter of a {place} with sides of {long} and {wide} metres?",
        ),
        (
            "If you walked once round the {place}, which sides would you walk along?",
            "How many sides of the {place} are {long} metres long?",
            "Could you sketch the {place} and write {long} and {wide} beside its sides?",
            "What do one long side and one short side of the {place} make together?",
            "The side of {wide} metres: how often does it occur round the {place}?",
        ),
        _perimeter,
        ("fence", "sides"),
    ),
    Kind(
        "recipe",
        (
            (
                "A recipe for {dish} takes {grams} grams of {food} for {people} people. How much {food} do you need "
                "for {guests} people?"
            ),
            (
                "For {people} people the {dish} needs {grams} g of {food}. {guests} guests are coming. How many "
                "grams is that?"
            ),
            "{grams} grams of {food} make {dish} for {people}. How many grams make it for {guests}?",
        ),
        (
            "How many times does a group of {people} fit into {guests} guests?",
            "How much {food} would one person need?",
            "If {people} people need {grams} grams, what do twice as many need?",
            "Will you need more or less than {grams} grams of {food} for {guests} people?",
            "What stays the same in the {dish} when more guests come, and what grows?",
        ),
        _recipe,
    ),
    Kind(
        "remainder",
        (
            "{total} {things} are packed into boxes of {size}. How many {things} are left over?",
            (
                "If you fill boxes with {size} {things} each until you cannot fill another, how many of the {total} "
                "{things} remain?"
            ),
            "What is the remainder when {total} {things} go into packs of {size}?",
        ),
        (
            "How many {things} are in 3 full boxes of {size}?",
            "Which multiple of {size} comes closest to {total} without going past it?",
            "Why can some of the {total} {things} not fill another box?",
            "What happens to the {things} that do not fill a box of {size}?",
            "Try a few boxes: how many of the {total} {things} are used up after 2 of them?",
        ),
        _remainder,
        ("boxes", "remainder"),
    ),
)
