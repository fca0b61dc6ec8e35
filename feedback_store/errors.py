"""What can go wrong between the program and its database file.

StoreError               every message is one sentence a person can act on
├── BadInput             a value that may not be stored              (the person who sent it)
│   ├── SamePassword     a new password that is the old one          (the person who typed it)
│   └── ChoiceStands     another choice, after the sides were named  (the person who chose)
├── NotYours             absent, or somebody else's: never told apart (the person who asked)
├── NotOurFile           the file belongs to another program         (operator)
├── NewerStore           a later Nightschool wrote the file          (operator)
├── StoreDamaged         the file cannot be trusted any more         (operator)
├── StoreBusy            another process held the file for too long  (whoever tries again)
├── DiskFull             nothing was written for lack of space       (operator)
├── StaleGeneration      the live adapter moved meanwhile            (operator, the night)
├── TaintedAdapter       it learned from somebody who said no since  (operator, the night)
├── Withdrawn            what was to be learned from is so no more   (the night)
├── UnknownAdapter       no adapter of that name is registered       (operator, the night)
└── NothingToRollBack    nothing was ever promoted                   (operator)
"""


class StoreError(Exception):
    """Root of the family."""


class BadInput(StoreError):
    """A value that may not be stored; nothing was written."""


class SamePassword(BadInput):
    """The new password is the one until now; whoever had to change a leaked one would go on with it."""

    def __init__(self) -> None:
        super().__init__("The new password is the one until now; choose another one.")


class ChoiceStands(BadInput):
    """What was chosen blind is not changed by somebody who has seen since what each side was."""

    def __init__(self) -> None:
        super().__init__("Your first choice stands, because you have seen since what each side was.")


class NotYours(StoreError):
    """Absent, or somebody else's; one sentence for both, so that it tells nothing."""

    def __init__(self) -> None:
        super().__init__("There is nothing of yours by that name; reload the page and try again.")


class NotOurFile(StoreError):
    """The file is not a Nightschool database; it was left as it is."""


class NewerStore(StoreError):
    """A later version of Nightschool wrote the file; it was left as it is."""


class StoreDamaged(StoreError):
    """The file cannot be read back whole; it was left as it is."""


class StoreBusy(StoreError):
    """Another process held the database for longer than anybody should wait."""


class DiskFull(StoreError):
    """There was no room to write; what was stored before is untouched."""


class StaleGeneration(StoreError):
    """Somebody moved the live pointer after the caller read it."""


class TaintedAdapter(StoreError):
    """The adapter learned from somebody who has been erased or has withdrawn since."""


class Withdrawn(StoreError):
    """Examples were erased or withdrawn between reading them and learning from them."""


class UnknownAdapter(StoreError):
    """No adapter of that name is registered."""


class NothingToRollBack(StoreError):
    """The live pointer never moved."""
