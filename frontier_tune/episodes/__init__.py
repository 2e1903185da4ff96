"""How episodes are played: renderers and the turn loop. Knows environments' messages and the Sampler protocol, no engine."""

from frontier_tune.episodes.play import play, turn_seed
from frontier_tune.episodes.renderers import ChatRenderer, CompactRenderer, Renderer, renderer_for

__all__ = ["ChatRenderer", "CompactRenderer", "Renderer", "play", "renderer_for", "turn_seed"]
