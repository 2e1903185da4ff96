"""Programs that write the nano base's corpus: dialogues of spreadsheet work in the SDK's tool grammar.

No model's output is in it.
"""
