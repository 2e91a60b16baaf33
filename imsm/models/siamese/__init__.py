"""The siamese model: two streams over one set of weights, and the gate between them."""
