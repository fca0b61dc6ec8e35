"""From votes to an adapter: the night. Imports assistant and feedback_store; nothing imports it but its own commands.

Importing the package loads no torch; the heavy rooms are imported by the commands that need them.
"""
