"""Traces of work: import of what people and agents did, with reviews; into proposed tasks, demonstrations and preference pairs.

No torch, no network: everything stays in files of the workspace.
"""
