"""Speech engines behind one interface: text in, audio with word times out."""

from train.voices.base import Engine, Speech, WordTime, engine_names, load_engine

__all__ = ["Engine", "Speech", "WordTime", "engine_names", "load_engine"]
