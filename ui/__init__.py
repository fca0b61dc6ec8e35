"""The web app: chat, compare and operate pages over an engine and a store. Importing this package imports nothing."""
