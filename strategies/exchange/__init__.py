"""Ask sites and judge their replies: membership, requests, messages, gate, deadlines, transport."""
