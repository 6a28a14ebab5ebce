"""For programs that use a hive: its mailboxes, its storage and its task queues, over a network that fails.

    async with node() as n:
        await n.mailbox("orders").send(b"two of the blue ones")
        async with n.mailbox("orders").receive() as messages:
            async for message in messages:
                print(message.body)
        address = await n.storage.put(Path("picture.webp"))
        async with n.task("builds").lease() as tasks: ...

What the native client tells, this does again where that is safe:

    done again      what only looks; a send, for it has an idempotency key; a put, for it is named by its
                    content; an acknowledgement, for it names its lease
    not done again  `write`, which is a bare `echo`: ConnectionResetError says that nobody knows

place      where the node is and who we are: WARREN_NODE_URL, WARREN_ID, WARREN_CAP
patience   when something is tried again, and when no more
node       node, Node: the connection, and what is under way on it
leases     what is held for a time: extended meanwhile, answered at the end
mailbox    Topic, Message
drafts     a message that is to be sent, and what becomes of it
sending    what is sent at the same time, together
storage    Storage
task       Queue, Task
"""

from warren.mount.sdk.drafts import Sent
from warren.mount.sdk.leases import GiveBack, Leased, Leases
from warren.mount.sdk.mailbox import Message, Topic
from warren.mount.sdk.node import Node, node
from warren.mount.sdk.patience import Patience
from warren.mount.sdk.storage import Storage
from warren.mount.sdk.task import Enqueued, Queue, Task

__all__ = [
    "Enqueued", "GiveBack", "Leased", "Leases", "Message", "Node", "Patience", "Queue", "Sent", "Storage",
    "Task", "Topic", "node",
]  # fmt: skip
