"""The six patterns, one file and one plain function each: read one, call it, or copy it and change it.

    chain         each step feeds the next
    agent         a model acts with tools until it is done

All that they do is call `run`: whatever they do is journaled, resumed after a crash, cancelled, limited
and traced like any other step.
"""

from dayjob.context import auto, last_messages, summarise
from dayjob.ladder import again, ask_person, rephrase, split, with_model
from dayjob.patterns.agent import agent
from dayjob.patterns.chain import chain

__all__ = [
    "again",
    "agent",
    "ask_person",
    "auto",
    "chain",
    "last_messages",
    "rephrase",
    "split",
    "summarise",
    "with_model",
]
