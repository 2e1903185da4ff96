"""Workbooks: sessions, tools, layouts and names for environments whose work is done in spreadsheets."""
