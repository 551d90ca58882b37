"""The six patterns, one file and one plain function each: read one, call it, or copy it and change it.

    chain         each step feeds the next
    agent         a model acts with tools until it is done

All that they do is call `run`: whatever they do is journaled, resumed after a crash, cancelled, limited
and traced like any other step.
"""

__all__: list[str] = []
