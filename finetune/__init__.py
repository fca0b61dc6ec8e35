"""From votes to an adapter: the night. Imports assistant and feedback_store; nothing imports it but its own commands.

Importing the package loads no torch; the heavy rooms are imported by the commands that need them.
"""

import os

# How many products oneDNN keeps code for, a quarter of a megabyte each: a micro-batch needs about forty, 1,024 are its
# default. Read at a process's first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
