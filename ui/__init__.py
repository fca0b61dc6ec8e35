"""The web app: chat, compare and operate pages over an engine and a store. Importing it imports no framework."""

from ui.no_stubs import keep_framework_from_writing_stubs

keep_framework_from_writing_stubs()
