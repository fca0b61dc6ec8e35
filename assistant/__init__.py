"""The model and how it answers. Knows nothing of people, votes, nights or pages.

Nothing here imports torch before it is needed, so that a page or a store can use the settings
and the engine's promise without it.
"""
