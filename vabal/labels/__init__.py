"""Labels: requests out, answers in, and the inbox that keeps them until a round takes them."""
