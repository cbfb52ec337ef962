"""Send requests and check replies: membership, requests, messages, gate, deadlines, transport."""
