"""The audit: who did what, written before it is done.

event = Event(...)
number, wait = audit.intent(event)    wait None: recorded. Else await wait.durable(); a failure means:
                                      refuse the effect
audit.outcome(number, event, code)    synchronous, so that it can stand in a finally
audit.note(event, code)               what needs no intent: a denial, the bytes of a closed fid

lines       the record type, the ports and the hash chain
memory      the newest lines, for servers without a directory
segments    the durable audit: segments, group commit, restart
resume      what a restart finds
heads       signed heads and the second place; keys are in `keys`
denials     the quota of denials
verify      finds what was altered, cut, dropped, inserted or rewritten
reading     segments as lines
"""

from warren.traces.audit.lines import Audit, Durable, Event, Line, Recorded
from warren.traces.audit.memory import AuditMemory
from warren.traces.audit.segments import AuditFile, Commit

__all__ = ["Audit", "AuditFile", "AuditMemory", "Commit", "Durable", "Event", "Line", "Recorded"]
