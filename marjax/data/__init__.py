"""Images with labels and ids, in an order that one integer describes."""
