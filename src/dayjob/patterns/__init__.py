"""The six patterns, one file and one plain function each: read one, call it, or copy it and change it.

    chain         each step feeds the next
    route         a classifier in front of handlers
    fan_out       parts side by side, or votes
    orchestrate   a plan, workers, a synthesis
    refine        made, judged, made better
    agent         a model acts with tools until it is done

All that they do is call `run`: whatever they do is journaled, resumed after a crash, cancelled, limited
and traced like any other step.
"""

from dayjob.collection import Err, Ok
from dayjob.context import auto, last_messages, summarise
from dayjob.ladder import again, ask_person, rephrase, split, with_model
from dayjob.patterns.agent import agent
from dayjob.patterns.chain import chain
from dayjob.patterns.fan_out import fan_out, majority
from dayjob.patterns.orchestrate import orchestrate
from dayjob.patterns.refine import refine
from dayjob.patterns.route import route
from dayjob.plans import Add, Assignment, Drop, Reassign, Reorder, Split, Task
from dayjob.verdicts import Adjust, Brief, Constraint, Refined, Verdict

__all__ = [
    "Add",
    "Adjust",
    "Assignment",
    "Brief",
    "Constraint",
    "Drop",
    "Err",
    "Ok",
    "Reassign",
    "Refined",
    "Reorder",
    "Split",
    "Task",
    "Verdict",
    "again",
    "agent",
    "ask_person",
    "auto",
    "chain",
    "fan_out",
    "last_messages",
    "majority",
    "orchestrate",
    "refine",
    "rephrase",
    "route",
    "split",
    "summarise",
    "with_model",
]
