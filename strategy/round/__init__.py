"""The parts of a round that all methods share, about in a round's order.

    roster: who is there, who is drawn        attendance: who left, who came
    fleet: budgets and channel as a resource problem        battery_policy: energy allotted to a round
    device_book: what a device holds        messages: what it is sent, in planned bits and measured bytes
    checks: answers in full
    device_scores: scores on devices' own data        ledger: the account of the round

Who sits out: optimizer/fdma/admission.py and ofdma/admission.py.
"""
