"""The siamese model: two streams over one set of weights, and the gate that interweaves them."""
