"""The siamese model, its adapters and its backbones."""
