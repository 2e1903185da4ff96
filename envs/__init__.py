"""Workflows of this workspace: each directory is one environment."""
