"""What can go wrong in a night. Every message is one sentence that says what to do.

FinetuneError             all seen by the operator
├── BadData               a file of examples cannot be used as it is
├── NothingToLearn        too little or nothing to train on or to examine with
├── NotYet               a night has too little to go on; it is skipped, which is no failure
├── BadReward             a reward model's folder may not be used
├── TrainingAborted       a number stopped being finite; nothing of that training is kept
└── UnknownRun            no run of that name exists
"""


class FinetuneError(Exception):
    """Root of the family."""


class BadData(FinetuneError):
    """A file of examples holds a line that cannot be used, or is absent or empty."""


class NothingToLearn(FinetuneError):
    """Too few examples remain, or none is left for the examination."""


class NotYet(FinetuneError):
    """The votes do not carry a night of this method yet."""


class BadReward(FinetuneError):
    """A reward model is absent, damaged or for another base: its scores would be noise."""


class TrainingAborted(FinetuneError):
    """A loss, gradient or weight is not finite: the adapter would answer nonsense."""


class UnknownRun(FinetuneError):
    """No run of that name exists."""
