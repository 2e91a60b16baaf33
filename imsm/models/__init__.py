"""The siamese model, its adapters and its backbones."""

import logging

# PEFT imports bitsandbytes where it is installed, which warns about a kernel of the Hub that imsm does not load
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
