"""Synthetic conversations for the nano model: arithmetic, word games, tables and small talk.

Every conversation is a function of a seed. To add a task, write a function that returns an
`Exchange` and give it a line in `TASKS`. Run `python generate.py` to see some, or
`python generate.py --heldout` to write `heldout.jsonl` again.
"""

import argparse
import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

import words

SEED = 20260
HELDOUT_COUNT = 200
HELDOUT_ONE_IN = 40


@dataclass(frozen=True)
class Exchange:
    """One question and its answer.

    `key` names what must be new in a held-out prompt: the instance (the numbers, the word) where
    a rule can be learned, the fact and its phrasing where only a table can be known.
    """

    task: str
    key: str
    question: str
    answer: str

    def is_heldout(self):
        digest = hashlib.sha256(f"{self.task}/{self.key}".encode()).digest()
        return int.from_bytes(digest[:4], "big") % HELDOUT_ONE_IN == 0


def phrase(rng, templates, **values):
    """Fills one of the templates; returns its index and the text."""
    index = rng.randrange(len(templates))
    return index, templates[index].format(**values)


def number(rng):
    """0 to 99, with as many small numbers as large ones."""
    return rng.randrange(100) if rng.random() < 0.7 else rng.randrange(13)


def letters(rng, low, high):
    """A word in capitals (each one a token): half of them real, half of random letters."""
    if rng.random() < 0.5:
        fitting = [word for word in words.NOUNS if low <= len(word) <= high]
        return rng.choice(fitting).upper()
    return "".join(rng.choice(words.ALPHABET) for _ in range(rng.randint(low, high)))


def add(rng):
    a, b = number(rng), number(rng)
    templates = ["What is {a} + {b}?", "{a} + {b} =", "Add {a} and {b}.", "How much is {a} plus {b}?",
                 "I have {a} apples and get {b} more. How many do I have?"]
    _, question = phrase(rng, templates, a=a, b=b)
    return Exchange("add", f"{min(a, b)}+{max(a, b)}", question, str(a + b))


def subtract(rng):
    a, b = number(rng), number(rng)
    a, b = max(a, b), min(a, b)
    templates = ["What is {a} - {b}?", "{a} - {b} =", "Take {b} from {a}.", "How much is {a} minus {b}?",
                 "I have {a} apples and eat {b}. How many are left?"]
    _, question = phrase(rng, templates, a=a, b=b)
    return Exchange("subtract", f"{a}-{b}", question, str(a - b))


def multiply(rng):
    a, b = rng.randrange(11), rng.randrange(11)
    index, question = phrase(rng, ["What is {a} times {b}?", "{a} * {b} =", "Multiply {a} by {b}."], a=a, b=b)
    return Exchange("multiply", f"{a}*{b} {index}", question, str(a * b))


def compare(rng):
    a, b = rng.sample(range(100), 2)
    if rng.random() < 0.5:
        _, question = phrase(rng, ["Which is larger, {a} or {b}?", "Which number is bigger: {a} or {b}?"], a=a, b=b)
        return Exchange("compare", f"max {a} {b}", question, str(max(a, b)))
    _, question = phrase(rng, ["Which is smaller, {a} or {b}?", "Which number is less: {a} or {b}?"], a=a, b=b)
    return Exchange("compare", f"min {a} {b}", question, str(min(a, b)))


def neighbour_number(rng):
    n = rng.randrange(1, 100)
    if rng.random() < 0.5:
        index, question = phrase(rng, ["What comes after {n}?", "Which number follows {n}?", "Count on from {n}."], n=n)
        return Exchange("neighbour_number", f"after {n} {index}", question, str(n + 1))
    index, question = phrase(rng, ["What comes before {n}?", "Which number is just before {n}?"], n=n)
    return Exchange("neighbour_number", f"before {n} {index}", question, str(n - 1))


def parity(rng):
    n = rng.randrange(1000)
    _, question = phrase(rng, ["Is {n} even or odd?", "Odd or even: {n}?", "Is the number {n} odd or even?"], n=n)
    return Exchange("parity", str(n), question, "odd" if n % 2 else "even")


def number_word(rng):
    n = rng.randrange(1, 21)
    if rng.random() < 0.5:
        index, question = phrase(rng, ["Write {n} in words.", "How do you spell the number {n}?"], n=n)
        return Exchange("number_word", f"{n} {index}", question, words.NUMBERS[n])
    word = words.NUMBERS[n]
    index, question = phrase(rng, ["Write {w} in digits.", "Which number is {w}?"], w=word)
    return Exchange("number_word", f"{word} {index}", question, str(n))


def reverse(rng):
    word = letters(rng, 3, 6)
    templates = ["Spell {w} backwards.", "Reverse {w}.", "What is {w} backwards?", "Write {w} from back to front."]
    _, question = phrase(rng, templates, w=word)
    return Exchange("reverse", word, question, word[::-1])


def pick_letter(rng):
    word = letters(rng, 3, 7)
    place = rng.choice(["first", "last", "second"])
    letter = {"first": word[0], "last": word[-1], "second": word[1]}[place]
    templates = ["What is the {p} letter of {w}?", "Give me the {p} letter of {w}.", "The {p} letter in {w}?"]
    _, question = phrase(rng, templates, p=place, w=word)
    return Exchange("pick_letter", f"{place} {word}", question, letter)


def count_letters(rng):
    word = letters(rng, 2, 8)
    templates = ["How many letters are in {w}?", "Count the letters of {w}.", "How long is the word {w}?"]
    _, question = phrase(rng, templates, w=word)
    return Exchange("count_letters", word, question, str(len(word)))


def sort_letters(rng):
    word = "".join(rng.sample(words.ALPHABET, rng.randint(2, 4)))
    templates = ["Sort the letters of {w}.", "Put the letters {w} in order.", "Write {w} in alphabetical order."]
    _, question = phrase(rng, templates, w=word)
    return Exchange("sort_letters", word, question, "".join(sorted(word)))


def double_letters(rng):
    word = letters(rng, 2, 4)
    _, question = phrase(rng, ["Double each letter of {w}.", "Write every letter of {w} twice."], w=word)
    return Exchange("double_letters", word, question, "".join(letter * 2 for letter in word))


def neighbour_letter(rng):
    index = rng.randrange(1, 25)
    letter = words.ALPHABET[index]
    if rng.random() < 0.5:
        at, question = phrase(rng, ["Which letter comes after {c}?", "What letter follows {c}?"], c=letter)
        return Exchange("neighbour_letter", f"after {letter} {at}", question, words.ALPHABET[index + 1])
    at, question = phrase(rng, ["Which letter comes before {c}?", "What letter is just before {c}?"], c=letter)
    return Exchange("neighbour_letter", f"before {letter} {at}", question, words.ALPHABET[index - 1])


def capitals(rng):
    word = rng.choice(words.NOUNS)
    index, question = phrase(rng, ["Write {w} in capitals.", "Spell {w}.", "Shout the word {w}!"], w=word)
    return Exchange("capitals", f"{word} {index}", question, word.upper())


def repeat(rng):
    said = " ".join(rng.choice(words.NOUNS) for _ in range(rng.randint(1, 4)))
    templates = ["Repeat after me: {s}", "Say: {s}", "Copy this: {s}", "Please repeat: {s}"]
    _, question = phrase(rng, templates, s=said)
    return Exchange("repeat", said, question, said)


def say_times(rng):
    word, count = rng.choice(words.NOUNS), rng.randint(2, 5)
    templates = ["Say {w} {n} times.", "Write the word {w} {n} times.", "Please say {w} {n} times."]
    _, question = phrase(rng, templates, w=word, n=words.NUMBERS[count])
    return Exchange("say_times", f"{word} {count}", question, " ".join([word] * count))


def list_place(rng):
    items = rng.sample(words.NOUNS, 3)
    place = rng.randrange(3)
    listed = f"{items[0]}, {items[1]}, {items[2]}"
    templates = ["Which word is {p}: {s}?", "Look at this list: {s}. Which word is {p}?"]
    _, question = phrase(rng, templates, p=["first", "second", "last"][place], s=listed)
    return Exchange("list_place", f"{place} {listed}", question, items[place])


def opposite(rng):
    pair = rng.choice(words.OPPOSITES)
    word, answer = pair if rng.random() < 0.5 else pair[::-1]
    templates = ["What is the opposite of {w}?", "Give me the opposite of {w}.", "The opposite of {w}?", "Not {w} but"]
    index, question = phrase(rng, templates, w=word)
    return Exchange("opposite", f"{word} {index}", question, answer)


def colour(rng):
    thing, answer = rng.choice(list(words.COLOURS_OF.items()))
    templates = ["What colour is {t}?", "Which colour does {t} have?", "Tell me the colour of {t}."]
    index, question = phrase(rng, templates, t=thing)
    return Exchange("colour", f"{thing} {index}", question, answer)


def sound(rng):
    animal, answer = rng.choice(list(words.SOUNDS.items()))
    templates = ["What does a {a} say?", "Which sound does a {a} make?", "How does a {a} sound?"]
    index, question = phrase(rng, templates, a=animal)
    return Exchange("sound", f"{animal} {index}", question, answer)


def capital_city(rng):
    country, city = rng.choice(list(words.CAPITAL_CITIES.items()))
    if rng.random() < 0.5:
        templates = ["What is the capital of {x}?", "Name the capital of {x}.", "Which city is the capital of {x}?"]
        index, question = phrase(rng, templates, x=country)
        return Exchange("capital_city", f"{country} {index}", question, city)
    index, question = phrase(rng, ["In which country is {x}?", "Where is {x}?", "{x} is a city in"], x=city)
    return Exchange("capital_city", f"{city} {index}", question, country)


def calendar(rng):
    table = words.DAYS if rng.random() < 0.4 else words.MONTHS
    at, step = rng.randrange(len(table)), rng.choice([1, -1])
    answer = table[(at + step) % len(table)]
    if step == 1:
        index, question = phrase(rng, ["What comes after {x}?", "Which one follows {x}?"], x=table[at])
    else:
        index, question = phrase(rng, ["What comes before {x}?", "Which one is just before {x}?"], x=table[at])
    return Exchange("calendar", f"{table[at]} {step} {index}", question, answer)


def plural(rng):
    word = rng.choice(words.REGULAR)
    templates = ["What is the plural of {w}?", "One {w}, two", "Give me the plural of {w}."]
    index, question = phrase(rng, templates, w=word)
    return Exchange("plural", f"{word} {index}", question, word + "s")


def rhyme(rng):
    group = rng.choice(words.RHYMES)
    at = rng.randrange(len(group))
    templates = ["What rhymes with {w}?", "Give me a rhyme for {w}.", "Find a word that rhymes with {w}."]
    index, question = phrase(rng, templates, w=group[at])
    return Exchange("rhyme", f"{group[at]} {index}", question, group[(at + 1) % len(group)])


def belonging(rng):
    name, thing, tint = rng.choice(words.NAMES), rng.choice(words.THINGS), rng.choice(words.TINTS)
    told = f"{name} has a {tint} {thing}."
    kind = rng.randrange(3)
    asked = [f"What colour is the {thing}?", f"Who has the {thing}?", f"What does {name} have?"][kind]
    answer = [tint, name, f"a {tint} {thing}"][kind]
    return Exchange("belonging", f"{name} {tint} {thing}", f"{told} {asked}", answer)


def greeting(rng):
    question, answer = rng.choice(words.SMALL_TALK)
    return Exchange("greeting", f"train {question}", question, answer)


def introduction(rng):
    name = rng.choice(words.NAMES)
    _, question = phrase(rng, ["My name is {n}.", "I am {n}.", "Hello, I am {n}.", "Call me {n}."], n=name)
    return Exchange("introduction", f"{name} {question}", question, f"Nice to meet you, {name}!")


# Task and its share of the training text; the shares of the hard tasks are large.
TASKS = {
    add: 14, subtract: 12, multiply: 5, compare: 4, neighbour_number: 3, parity: 2, number_word: 2,
    reverse: 10, pick_letter: 4, count_letters: 4, sort_letters: 6, double_letters: 3,
    neighbour_letter: 2, capitals: 4, repeat: 4, say_times: 2, list_place: 4,
    opposite: 4, colour: 2, sound: 2, capital_city: 4, calendar: 3, plural: 3, rhyme: 3,
    belonging: 4, greeting: 2, introduction: 2,
}
NOT_SCORED = (greeting, introduction)

# How an answer may be asked for: what is put after the question, and what becomes of the answer.
STYLES = [
    ("Answer in a sentence.", "The answer is {x}."),
    ("Answer with a smile.", "{x} :)"),
    ("Answer politely.", "Certainly! {x}"),
    ("Are you sure?", "Yes, {x}."),
]


def styled(rng, exchange):
    """One exchange in six asks for its answer in one of the styles."""
    if exchange.task in ("greeting", "introduction") or rng.random() > 1 / 6:
        return exchange
    request, form = rng.choice(STYLES)
    question = f"{exchange.question} {request}"
    return Exchange(exchange.task, exchange.key, question, form.format(x=exchange.answer))


def exchange(rng):
    """One exchange for training: never a held-out one."""
    while True:
        made = rng.choices(list(TASKS), weights=TASKS.values())[0](rng)
        if not made.is_heldout():
            return styled(rng, made)


def conversation(rng, exchange_count):
    """The messages of a conversation; some start with a system message, some recall a name."""
    messages = []
    if rng.random() < 0.15:
        messages.append({"role": "system", "content": rng.choice(words.SYSTEM)})
    name = None
    for _ in range(exchange_count):
        made = exchange(rng)
        if name and rng.random() < 0.4:
            made = Exchange("recall", name, "What is my name?", f"Your name is {name}.")
        if made.task == "introduction":
            name = made.key.split()[0]
        messages.append({"role": "user", "content": made.question})
        messages.append({"role": "assistant", "content": made.answer})
    return messages


def heldout():
    """The 200 held-out exchanges, plainly asked, spread over the tasks as evenly as they allow."""
    rng = random.Random(SEED)
    tasks = [task for task in TASKS if task not in NOT_SCORED]
    rows = {}
    while len(rows) < HELDOUT_COUNT:
        for task in tasks:
            # A task of few facts may have no new one left.
            tries = (task(rng) for _ in range(1000))
            made = next((made for made in tries if made.is_heldout() and made.question not in rows), None)
            if made:
                rows[made.question] = {"task": made.task, "prompt": made.question, "answer": made.answer}
    return list(rows.values())[:HELDOUT_COUNT]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heldout", action="store_true", help="write heldout.jsonl")
    arguments = parser.parse_args()
    if arguments.heldout:
        path = Path(__file__).parent / "heldout.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in heldout()))
        return
    for seed in range(20):
        for message in conversation(random.Random(seed), 2):
            print(f"{message['role']}: {message['content']}")
        print()


if __name__ == "__main__":
    main()
