"""What a receiver does with each message of a sender: blocks go straight into the sink's buffers and are verified."""

from earthshine.prfaas.wire.fault import Reason, WireError
from earthshine.prfaas.wire.frames import Kind
from earthshine.prfaas.wire.link import Link
from earthshine.prfaas.wire.messages import Ack, Again, Begin, Block, End, Failure, Message, Plain
from earthshine.prfaas.wire.transfer import Transfer


def receive(message: Message, transfer: Transfer | None, link: Link) -> bool:
    """Handle a message that arrived over `link`. `transfer`: the one it names, None where that is over.

    Returns whether a block arrived well. Raises WireError where the connection must end.
    """
    if isinstance(message, Block):
        return _block(message, transfer, link)
    if isinstance(message, Failure) and message.transfer:
        if transfer is not None:
            transfer.finish(WireError(message.reason, message.text))
        link.queue(Ack(message.transfer, 0, [message.seq]).frame())
    elif transfer is None and isinstance(message, Begin | End):
        link.queue(Plain(Kind.CANCEL, message.transfer).frame())
    elif transfer is not None and isinstance(message, Begin):
        _answer(link, transfer.begin(message))
    elif transfer is not None and isinstance(message, End):
        _answer(link, transfer.end(message.seq))
    elif isinstance(message, Plain) and message.kind is Kind.ACCEPTED:
        if transfer is not None:
            transfer.accepted = True
    else:
        raise WireError(Reason.PROTOCOL, f"A sender does not send {type(message).__name__}.")
    if transfer is not None and transfer.complete:
        transfer.finish(None)
    return False


def _block(block: Block, transfer: Transfer | None, link: Link) -> bool:
    views = None if transfer is None else transfer.claim(block)
    if transfer is None or views is None:
        link.drop(block.nbytes)
        if transfer is None or transfer.over():
            link.queue(Plain(Kind.CANCEL, block.transfer).frame())
        else:
            link.queue(transfer.known(block).frame())
        return False
    whole = False
    try:
        whole = link.fill(views, transfer.over)
    finally:
        answer = transfer.settle(block, views, whole)
    _answer(link, answer)
    if transfer.complete:
        transfer.finish(None)
    return isinstance(answer, Ack)


def _answer(link: Link, answer: Ack | Again | None) -> None:
    if answer is not None:
        link.queue(answer.frame())
